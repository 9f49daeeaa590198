"""Settings that are seldom used together, on one rank in one micro-batch and on two ranks in several: the same losses,
batches and weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ccts_dist.records import Utterance
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import (
    SPEECH,
    build_two_kinds,
    make_cache,
    read_history,
    read_validations,
    write_run,
)
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

STEPS = 8
RUNS = {"one": (1, "zero0", 16), "two": (2, "zero2", 3)}
"""By name: ranks, ds_config, and most utterances of a micro-batch."""

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
NONLINEAR = {"embedding_dim": 8, "embedding_norm": "layer", "embedding_activation": "gelu"}
CATEGORIES = {"categories": ["calm", "tense"], "category_map": {"upset": "tense", "other": ""}}
VOTES = ("calm", "tense")
GATED = {"embedding_weight": 1.0, "prediction_weight": 2.0, "standardize": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "adapters, average, balanced, mapped categories": {
        "model": {
            **NONLINEAR, **CATEGORIES, "heads": "per-target",
            "speech": {**SPEECH, "train_feature_encoder": False, "trainable": "lora:3"},
            "text": {"encoder": "scratch", "vocab_size": 60, "pooling": "first", "max_tokens": 16,
                     "trainable": "lora:2", "scratch": BERT},
        },
        "batch": {"balanced": True},
        "loss": {"class_weights": [1.0, 2.5], "focal_gamma": 1.5},
        "train": {"ema_decay": 0.6},
    },
    "few labels, confidence": {
        "model": {"embedding_dim": 8},
        "batch": {"labelled_share": 0.25},
        "distill": {**GATED, "gate": "confidence", "min_confidence": 0.5, "prediction_loss": "ccc"},
        "train": {"ema_decay": 0.3},
    },
    "frames kept, poolings per target, keys": {
        "model": {
            **NONLINEAR, "categories": ["calm", "tense"], "poolings": "per-target",
            "speech": {**SPEECH, "train_feature_encoder": False, "trainable": "none", "pooling": "gru",
                       "gru_hidden": 5},
        },
        "distill": {**GATED, "gate": "keys", "gate_keys": "keys.txt", "embedding_loss": "cosine"},
        "loss": {"category_target": "votes", "class_weights": [2.0, 1.0], "focal_gamma": 0.5},
    },
    "density of grades": {
        "model": {"embedding_dim": 8, "targets": ["activation", "valence.7.share"],
                  "categories": ["valence.1", "valence.7"]},
        "loss": {"category_target": "votes", "focal_gamma": 1.0},
    },
    "random as the condition of one target without outliers": {
        "model": {"embedding_dim": 8},
        "distill": {**GATED, "gate": "random", "residual_scale": "robust", "gate_targets": ["valence"],
                    "threshold": 0.6},
        "batch": {"labelled_share": 0.5},
    },
}  # fmt: skip


def few_labels(number: int, utterance: Utterance) -> Utterance:
    """Every other pair of training utterances unrated, three kinds of transcripts, four categories."""
    if number % 4 >= 2 and utterance.split == "Train":
        utterance = replace(
            utterance, labels={name: utterance.labels[name] for name in VOTES if name in utterance.labels}
        )
    low = 0.1 * (number % 8)
    grades = {} if number % 5 == 4 else {"valence.1.share": low, "valence.7.share": 0.9 - low}
    return replace(
        utterance,
        labels={**utterance.labels, **grades},
        transcript_confidence=(0.2, 0.9, None)[number % 3],
        category=("calm", "tense", "upset", "other", None)[number % 5],
    )


LEFT_OUT = {
    "adapters, average, balanced, mapped categories": (
        "model.category_map", "model.embedding_activation", "model.text.pooling",
        "model.speech.trainable", "model.text.trainable", "batch.balanced", "loss.class_weights", "loss.focal_gamma",
        "train.ema_decay",
    ),
    "few labels, confidence": ("batch.labelled_share", "distill.min_confidence"),
    "frames kept, poolings per target, keys": (
        "model.poolings", "distill.gate_keys", "loss.category_target",
    ),
    "density of grades": ("loss.focal_gamma",),
    "random as the condition of one target without outliers": (
        "distill.residual_scale", "distill.gate_targets", "distill.threshold",
    ),
}  # fmt: skip
"""Keys of each of ``SETTINGS``, without which another model is to come of it."""

IN_PLACE = {"min_confidence": 0.95, "trainable": "none", "gate_keys": "others.txt"}
"""Values of keys that cannot be left out."""


def without(tables: dict[str, Any], key: str) -> dict[str, Any]:
    """The tables without a key, or with another value for it."""
    first, _, rest = key.partition(".")
    changed = dict(tables)
    if rest:
        changed[first] = without(tables[first], rest)
    elif first in IN_PLACE:
        changed[first] = IN_PLACE[first]
    else:
        del changed[first]
    return changed


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By setting, and by one of ``RUNS`` or by a key that is left out on one rank."""
    place = tmp_path_factory.mktemp("together")
    shards = build_two_kinds(place, votes=True, change=few_labels)
    make_cache(save_small_teacher(place / "teacher"), shards, place / "cache")
    (place / "keys.txt").write_text("".join(f"Train_{number}\n" for number in range(0, 64, 3)) + "of no utterance\n")
    (place / "others.txt").write_text("".join(f"Train_{number}\n" for number in range(1, 64, 3)))
    found: dict[tuple[str, str], Path] = {}

    def job(name: str, run: str, tables: dict[str, Any], stage: str, micro: int) -> Job:
        output = found[name, run] = place / "runs" / str(len(found))
        distill = dict(tables.get("distill", {}))
        if "gate_keys" in distill:
            distill["gate_keys"] = str(place / distill["gate_keys"])
        data = {"teacher_cache": str(place / "cache")} if distill else {}
        if name.startswith("frames kept"):
            data["feature_cache"] = str(place / f"frames-{stage}")
        common = {
            "data": data,
            "batch": {"micro_batch_size": micro},
            "optim": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
            "train": {"max_steps": STEPS, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")},
        } | ({"distill": distill} if distill else {})
        merged = {table: {**tables.get(table, {}), **values} for table, values in common.items()}
        config = write_run(place / f"{output.name}.toml", place / "shards", output, **{**tables, **merged})
        return Job(config=config)

    for run, (num_ranks, stage, micro) in RUNS.items():
        jobs = [job(name, run, tables, stage, micro) for name, tables in SETTINGS.items()]
        if num_ranks == 1:
            cases = [(name, key) for name, keys in LEFT_OUT.items() for key in keys]
            jobs += [job(name, key, without(SETTINGS[name], key), stage, micro) for name, key in cases]
        run_on_ranks(run_trainings, num_ranks, jobs, timeout_s=600)
    return found


def model_of(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "last" / "model.safetensors")


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_batches_and_weights_agree(outputs: dict[tuple[str, str], Path], setting: str):
    one, two = (outputs[setting, run] for run in RUNS)
    plain, others = read_history(one), read_history(two)
    assert len(plain) == STEPS
    assert [step["keys"] for step in plain] == [step["keys"] for step in others]
    losses = [name for name in plain[0] if name.startswith(("train/loss", "train/ccc", "distill/"))]
    assert np.ptp([step["train/loss"] for step in plain]) > 0.01, "nothing was learnt, so nothing was compared"
    for name in losses:
        np.testing.assert_allclose(
            [step[name] for step in others], [step[name] for step in plain], atol=1e-5, err_msg=name
        )
    weights = [model_of(output) for output in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    # The gradient of these biases is nothing but rounding, which Adam makes whole steps of.
    compared = [key for key in weights[0] if not key.endswith("k_proj.bias")]
    assert max(np.abs(weights[0][key] - weights[1][key]).max() for key in compared) <= 1e-5


@pytest.mark.parametrize(("setting", "key"), [(name, key) for name, keys in LEFT_OUT.items() for key in keys])
def test_each_key_makes_another_model(outputs: dict[tuple[str, str], Path], setting: str, key: str):
    own, other = (model_of(outputs[setting, run]) for run in ("one", key))
    assert own.keys() != other.keys() or max(np.abs(own[name] - other[name]).max() for name in own) > 1e-4


def test_density_of_grades_is_learnt_and_its_divergence_reported(outputs: dict[tuple[str, str], Path]):
    output = outputs["density of grades", "one"]
    losses = [step["train/loss_category"] for step in read_history(output)]
    assert 0 < losses[-1] < losses[0]
    validation = read_validations(output)[-1]
    assert validation["valid/category_kl_to_votes"] > 0
    assert np.isfinite(validation["valid/loss"])
