"""Models: encoders, pooling, the emotion model, its tokenizer and its folder. Knows no rank, no corpus and no loss."""

from ccts_dist.model.emotion import (
    EmotionModel,
    EncoderConfigs,
    ModelOutput,
    PartSize,
    build_model,
    describe,
    parameter_groups,
    rebuild_model,
)
from ccts_dist.model.folder import LoadedModel, load_model, save_model, weights_digest
from ccts_dist.model.text.tokenizer import (
    PieceTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "EmotionModel",
    "EncoderConfigs",
    "LoadedModel",
    "ModelOutput",
    "PartSize",
    "PieceTokenizer",
    "PretrainedTokenizer",
    "Tokenizer",
    "build_model",
    "describe",
    "load_model",
    "load_tokenizer",
    "parameter_groups",
    "rebuild_model",
    "save_model",
    "train_tokenizer",
    "weights_digest",
]
