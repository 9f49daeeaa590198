"""Small real encoders for the model tests: a few thousand parameters, every mechanism of the large ones."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig

# The first frame needs 185 samples, and another comes every 160.
SPEECH: dict[str, Any] = {
    "model_type": "hubert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 24],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 4, 8],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
TEXT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VOCABULARY = 50


def speech_config(**changes: Any) -> SpeechConfig:
    """A speech branch from scratch; keys of ``scratch`` go in with ``shape=``."""
    shape = changes.pop("shape", {})
    return replace(SpeechConfig(encoder="scratch", scratch=SPEECH | shape, gru_hidden=16), **changes)


def text_config(**changes: Any) -> TextConfig:
    """A text branch from scratch; keys of ``scratch`` go in with ``shape=``."""
    shape = changes.pop("shape", {})
    return replace(TextConfig(encoder="scratch", scratch=TEXT | shape, gru_hidden=16, max_tokens=32), **changes)


def both(**changes: Any) -> ModelConfig:
    """Both branches."""
    return replace(ModelConfig(embedding=8, speech=speech_config(), text=text_config()), **changes)


def utterances(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise of those lengths, padded with zeros, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        audio[row, :length] = 0.1 * torch.randn(length, generator=generator)
    return audio, torch.tensor(lengths)


def transcripts(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token numbers of those lengths, padded with 0, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(4, VOCABULARY, (length,), generator=generator)
    return tokens, torch.tensor(lengths)
