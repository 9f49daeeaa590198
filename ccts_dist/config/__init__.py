"""A run as data. ``schema`` names what a run file can hold; ``reader`` turns TOML into it."""

from ccts_dist.config.augment import AugmentConfig, SpecAugmentConfig
from ccts_dist.config.model_rules import cached_branches, speech_tables
from ccts_dist.config.model_schema import (
    FilterbankConfig,
    ModelConfig,
    SpeechConfig,
    TextConfig,
    layer_number,
    lora_rank,
    num_poolings,
    num_trainable_layers,
)
from ccts_dist.config.optim_schema import OptimConfig
from ccts_dist.config.reader import (
    complete_run,
    complete_tree,
    parse_model,
    parse_run,
    read_run,
    run_to_toml,
    run_to_tree,
)
from ccts_dist.config.renamed import with_present_keys
from ccts_dist.config.schema import (
    BatchConfig,
    DataConfig,
    DistillConfig,
    LossConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BatchConfig",
    "DataConfig",
    "DistillConfig",
    "FilterbankConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SpecAugmentConfig",
    "SpeechConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainConfig",
    "cached_branches",
    "complete_run",
    "complete_tree",
    "layer_number",
    "lora_rank",
    "num_poolings",
    "num_trainable_layers",
    "parse_model",
    "parse_run",
    "read_run",
    "run_to_toml",
    "run_to_tree",
    "speech_tables",
    "with_present_keys",
]
