"""Adapters in training: the same losses and weights on any ranks, stage and micro-batches, also after resuming."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ccts_dist.model import load_model
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import SPEECH, build_two_kinds, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

STEPS, STOP = 12, 5
MODEL = {
    "embedding_dim": 8,
    "gradient_checkpointing": True,
    "speech": {**SPEECH, "train_feature_encoder": False, "trainable": "lora:2"},
    "text": {
        "encoder": "scratch", "vocab_size": 60, "pooling": "mean", "max_tokens": 16, "trainable": "lora:3",
        "scratch": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    },
}  # fmt: skip
RUNS = {"one rank": (1, "zero0", 4), "two ranks": (2, "zero2", 8), "two ranks, all spread": (2, "zero3", 3)}
"""Ranks, ds_config and micro-batch size."""

MOVED = ((2, "zero3", STOP), (1, "zero1", 9), (2, "zero2", STEPS))
"""Ranks, ds_config and last step of each part of one more run."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    build_two_kinds(place)

    def job(name: str, stage: str, micro: int, steps: int) -> Job:
        config = write_run(
            place / f"{name}-{steps}.toml".replace(" ", "-"), place / "shards", place / "runs" / name, model=MODEL,
            batch={"global_batch_size": 12, "micro_batch_size": micro},
            optim={"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
            train={"max_steps": steps, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")},
        )  # fmt: skip
        return Job(config=config, set=("run_name=adapters",), resume="auto")

    jobs: list[tuple[int, list[Job]]] = [
        (ranks, [job(name, stage, micro, STEPS)]) for name, (ranks, stage, micro) in RUNS.items()
    ]
    jobs += [(ranks, [job("moved", stage, 4, until)]) for ranks, stage, until in MOVED]
    for num_ranks, of_these in jobs:
        run_on_ranks(run_trainings, num_ranks, of_these, timeout_s=600)
    return {name: place / "runs" / name for name in (*RUNS, "moved")}


def test_losses_and_merged_weights_agree_on_any_ranks_stage_and_micro_batches(outputs):
    losses = {name: [step["train/loss"] for step in read_history(output)] for name, output in outputs.items()}
    weights = {name: load_file(output / "last" / "model.safetensors") for name, output in outputs.items()}
    plain = losses["one rank"]
    assert len(plain) == STEPS
    assert np.ptp(plain) > 0.01, "nothing was learnt, so nothing was compared"
    for name in outputs:
        np.testing.assert_allclose(losses[name], plain, atol=1e-5, err_msg=name)
        assert weights[name].keys() == weights["one rank"].keys()
        worst = max(np.abs(weights[name][key] - weights["one rank"][key]).max() for key in weights[name])
        assert worst <= 2e-5, name


def test_checkpoints_hold_frozen_weights_and_adapters_and_models_hold_their_sum(outputs):
    output = outputs["two ranks, all spread"]
    (checkpoint,) = (output / "checkpoints").glob(f"step-{STEPS:08d}")
    stored, saved = load_file(checkpoint / "weights.safetensors"), load_file(output / "last" / "model.safetensors")
    adapted = [name.removesuffix(".base_layer.weight") for name in stored if name.endswith(".base_layer.weight")]
    assert len(adapted) == 2 + 2, "queries and values of one layer in speech and text"
    assert not any("lora" in name for name in saved)
    for name in adapted:
        added = saved[f"{name}.weight"] - stored[f"{name}.base_layer.weight"]
        by_hand = stored[f"{name}.lora_B.default.weight"] @ stored[f"{name}.lora_A.default.weight"]
        assert np.abs(added).max() > 1e-4, name
        np.testing.assert_allclose(added, by_hand, atol=1e-6, err_msg=name)
    moments = load_file(checkpoint / "exp_avg.safetensors")
    assert {name for name in moments if ".encoder." in name} == {name for name in stored if "lora" in name}
    assert load_model(output / "best").config.speech.trainable == "lora:2"
