"""Encoders that take input from a feature extractor: the same training on any ranks, under any stage, from kept
frames."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.models.model_shapes import save_extracted_encoder
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

STEPS = 8
RUNS = {
    ("whisper, w2v-bert", "one rank"): (1, "zero0", False),
    ("whisper, w2v-bert", "two ranks, all spread"): (2, "zero3", False),
    ("moonshine", "one rank"): (1, "zero0", False),
    ("moonshine", "two ranks"): (2, "zero2", False),
    ("frozen", "one rank"): (1, "zero0", False),
    ("frozen", "two ranks, frames kept"): (2, "zero3", True),
}
MODELS = sorted({model for model, _ in RUNS})


def model_of(place: Path, name: str) -> dict:
    def branch(family: str, **changes) -> dict:
        return {"encoder": str(place / family), "gru_hidden": 5, **changes}

    return {
        "whisper, w2v-bert": {"speech": branch("whisper"), "extra_speech": [branch("w2v-bert", layers="weighted")]},
        "moonshine": {"speech": branch("moonshine", trainable="top:1")},
        "frozen": {"speech": branch("whisper", trainable="none", layers="layer:1")},
    }[name] | {"gradient_checkpointing": name != "frozen", "embedding_dim": 7}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[tuple[str, str], Path]:
    place = tmp_path_factory.mktemp("extracted")
    build_two_kinds(place)
    for family in ("whisper", "w2v-bert", "moonshine"):
        save_extracted_encoder(place / family, family)
    jobs: dict[int, list[Job]] = {1: [], 2: []}
    found = {}
    for number, ((model, run), (num_ranks, stage, keeps)) in enumerate(RUNS.items()):
        found[model, run] = place / "runs" / str(number)
        config = write_run(
            place / f"{number}.toml", place / "shards", found[model, run], model=model_of(place, model),
            data={"feature_cache": str(place / "frames") if keeps else ""},
            batch={"global_batch_size": 12, "micro_batch_size": 3}, optim={"learning_rate": 0.03},
            train={"max_steps": STEPS, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")},
        )  # fmt: skip
        jobs[num_ranks].append(Job(config=config))
    for num_ranks, of_these in jobs.items():
        run_on_ranks(run_trainings, num_ranks, of_these, timeout_s=600)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_losses_and_weights_agree(outputs, model):
    one, other = (output for (name, _), output in outputs.items() if name == model)
    losses = [[step["train/loss"] for step in read_history(output)] for output in (one, other)]
    assert len(losses[0]) == STEPS
    assert np.ptp(losses[0]) > 0.01, "nothing was learnt, so nothing was compared"
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    weights = [load_file(output / "last" / "model.safetensors") for output in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert max(np.abs(weights[1][key] - weights[0][key]).max() for key in weights[0]) <= 1e-5
