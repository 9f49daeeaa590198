"""A run as data. ``schema`` says what a run file can hold; ``reader`` turns TOML into it."""

from ccts_dist.config.reader import parse_model, parse_run, read_run, run_to_toml, run_to_tree, with_defaults
from ccts_dist.config.schema import (
    BatchConfig,
    DataConfig,
    DistillConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SpeechConfig,
    TextConfig,
    TrackingConfig,
    TrainConfig,
    num_trainable_layers,
)

__all__ = [
    "BatchConfig",
    "DataConfig",
    "DistillConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SpeechConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "num_trainable_layers",
    "parse_model",
    "parse_run",
    "read_run",
    "run_to_toml",
    "run_to_tree",
    "with_defaults",
]
