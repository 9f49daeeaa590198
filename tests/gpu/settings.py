"""Settings of a training whose losses must be the same on every device: one change each of the demo's student."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ccts_dist.config.schema import BatchConfig
from tests.gpu.material import CATEGORIES, RUN_FILES, student_speech
from tests.helpers.models.large_student import LARGE

Sections = Mapping[str, Mapping[str, Any]]

STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "apply_spec_augment": False}
"""A GPU draws other random numbers from one seed."""

_PREDICTIONS = {"prediction_weight": 1.0}
_TWO = {"micro_batch_size": 8}
_MASKS = {"mask_time_prob": 0.3, "mask_time_length": 3, "mask_feature_prob": 0.1, "mask_feature_length": 8}


def _text_without_dropout() -> dict[str, Any]:
    """The demo teacher's text table without anything random."""
    text = tomllib.loads((RUN_FILES / "teacher.toml").read_text())["model"]["text"]
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {**text, "scratch": {**text["scratch"], **still}}


SETTINGS: Mapping[str, Sections] = {
    "student": {},
    "two micro-batches": {"batch": _TWO},
    "gate none": {"distill": {"gate": "none", "threshold": None, **_PREDICTIONS}},
    "gate per-dimension": {"distill": {"gate": "per-dimension", **_PREDICTIONS}, "batch": _TWO},
    "gate soft": {"distill": {"gate": "soft", "threshold": None, **_PREDICTIONS}, "batch": _TWO},
    "prediction loss ccc": {"distill": {"prediction_loss": "ccc", **_PREDICTIONS}, "batch": _TWO},
    "micro-batch scope": {"loss": {"scope": "micro-batch"}},
    "micro-batch scope, two": {"loss": {"scope": "micro-batch"}, "batch": _TWO},
    "categories": {"model": {"categories": list(CATEGORIES)}, "batch": _TWO},
    "recomputation": {"model": {"gradient_checkpointing": True}, "batch": _TWO},
    "SpecAugment": {"model": {"speech": student_speech(spec_augment=_MASKS)}, "batch": _TWO},
    "weighted layers": {"model": {"speech": student_speech(layers="weighted")}},
    "group norm": {
        "model": {"speech": student_speech(shape={"feat_extract_norm": "group", "do_stable_layer_norm": False})}
    },
    "filter bank": {"model": {"speech": {"encoder": "filterbank", "pooling": "statistics"}}},
    "GRU": {"model": {"speech": student_speech(pooling="gru")}},
    "attentive statistics": {"model": {"speech": student_speech(pooling="attentive-statistics")}},
    "teacher with text": {"data": {"teacher_cache": None}, "model": {"text": _text_without_dropout()}},
}

_SECONDS = {"micro_batch_size": 16, "micro_batch_seconds": 8.0}
_OF_BATCH: Mapping[str, Sections] = {
    "two micro-batches, two rounds": {"batch": {**_TWO, "forward_rounds": "two"}},
    "micro-batches by seconds": {"batch": _SECONDS},
}
if {"forward_rounds", "micro_batch_seconds"} <= {field.name for field in fields(BatchConfig)}:
    SETTINGS = {**SETTINGS, **_OF_BATCH}

NUM_STEPS = 10

LARGE_NAME, LARGE_STEPS = "HuBERT-large", 2
LARGE_SECTIONS: Sections = {
    "model": {
        "speech": {"encoder": "scratch", "pooling": "gru", "scratch": {"model_type": "hubert", **LARGE, **STILL}}
    },
    "batch": {"global_batch_size": 4, "micro_batch_size": 4},
}
"""The paper's size: 24 layers, which report more of rounding than three."""


def with_precision(sections: Sections, **train: Any) -> dict[str, Mapping[str, Any]]:
    """The same with other values in [train]."""
    return {**sections, "train": {**sections.get("train", {}), **train}}
