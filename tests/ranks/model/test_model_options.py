"""A model with every option of encoders, layers, poolings and heads at once: the same on any ranks and any stage."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import SPEECH, build_two_kinds, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

STEPS = 12
RUNS = {"one rank": (1, "zero0"), "two ranks": (2, "zero2"), "two ranks, all spread": (2, "zero3")}
SCRATCH = {**SPEECH["scratch"], "num_hidden_layers": 2}
CONFORMER = {
    **{key: value for key, value in SCRATCH.items() if key != "do_stable_layer_norm"},
    "model_type": "wav2vec2-conformer",
    "conv_depthwise_kernel_size": 3,
    "conformer_conv_dropout": 0.0,
}
MODEL = {
    "embedding_dim": 7,
    "poolings": "per-target",
    "heads": "per-target",
    "head_hidden_dim": 5,
    "gradient_checkpointing": True,
    "speech": {**SPEECH, "scratch": SCRATCH, "layers": "weighted", "pooling": "attentive-statistics",
               "attention_hidden": 6},
    "extra_speech": [
        {"encoder": "filterbank", "filterbank": {"num_mel_bins": 12, "channels": [8], "kernel": 3}, "gru_hidden": 5},
        {"encoder": "scratch", "scratch": CONFORMER, "layers": "layer:1", "pooling": "self-attention",
         "do_normalize": "on"},
    ],
    "text": {
        "encoder": "scratch", "vocab_size": 60, "layers": "weighted", "pooling": "self-attention", "max_tokens": 16,
        "scratch": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("options")
    build_two_kinds(place)
    jobs: dict[int, list[Job]] = {1: [], 2: []}
    found = {}
    for number, (name, (num_ranks, stage)) in enumerate(RUNS.items()):
        found[name] = place / "runs" / str(number)
        config = write_run(
            place / f"{number}.toml", place / "shards", found[name], model=MODEL,
            batch={"global_batch_size": 12, "micro_batch_size": 3},
            optim={"learning_rate": 0.1, "speech_lr_scale": 0.5, "text_lr_scale": 2.0},
            train={"max_steps": STEPS, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")},
        )  # fmt: skip
        jobs[num_ranks].append(Job(config=config))
    for num_ranks, of_these in jobs.items():
        run_on_ranks(run_trainings, num_ranks, of_these, timeout_s=600)
    return found


def test_losses_agree_on_any_ranks_and_stage(outputs):
    losses = {name: [step["train/loss"] for step in read_history(output)] for name, output in outputs.items()}
    plain = losses["one rank"]
    assert len(plain) == STEPS
    assert np.isfinite(plain).all()
    assert np.ptp(plain) > 0.01, "nothing was learnt, so nothing was compared"
    for name, others in losses.items():
        np.testing.assert_allclose(others, plain, atol=1e-5, err_msg=name)


def test_weights_agree_and_all_that_is_trained_moved(outputs):
    weights = {name: load_file(output / "last" / "model.safetensors") for name, output in outputs.items()}
    plain = weights["one rank"]
    for name, others in weights.items():
        assert others.keys() == plain.keys()
        assert max(np.abs(others[key] - plain[key]).max() for key in plain) <= 1e-5, name
    scores = [f"{name}.pooling.poolings.{number}.query.weight" for name in ("also.1", "text") for number in range(3)]
    for key in ("speech.mixture.scores", "text.mixture.scores", *scores):
        assert np.abs(plain[key]).max() > 1e-7, key  # they start at 0
    assert not any(key.startswith("also.1.encoder.encoder.layers.1") for key in plain)


def test_each_group_has_its_own_learning_rate(outputs):
    for output in outputs.values():
        step = read_history(output)[0]
        rates = {key.removeprefix("train/lr_"): step[key] for key in step if key.startswith("train/lr_")}
        assert rates == pytest.approx({"speech": 0.05, "text": 0.2, "head": 0.1})
