"""A run as data. ``schema`` says what a run file can hold; ``reader`` turns TOML into it."""

from ccts_dist.config.reader import complete_tree, parse_model, parse_run, read_run, run_to_toml, run_to_tree
from ccts_dist.config.schema import (
    AugmentConfig,
    BatchConfig,
    DataConfig,
    DistillConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SpecAugmentConfig,
    SpeechConfig,
    TextConfig,
    TrackingConfig,
    TrainConfig,
    num_trainable_layers,
)

__all__ = [
    "AugmentConfig",
    "BatchConfig",
    "DataConfig",
    "DistillConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SpecAugmentConfig",
    "SpeechConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "complete_tree",
    "num_trainable_layers",
    "parse_model",
    "parse_run",
    "read_run",
    "run_to_toml",
    "run_to_tree",
]
