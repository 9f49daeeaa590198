"""A checkpoint of emotion2vec in the layout of the published ones, at a small size."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

AUDIO = "modality_encoders.AUDIO."
CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Kernel and stride, as published; so are 4 and 8 layers, 5 convolutions of width 19, and 10 tokens."""
CHANNELS, SIZE, WIDE, HEADS, GROUPS = 6, 12, 20, 3, 4


def published() -> dict[str, Tensor]:
    """Weights under the names of emotion2vec_base."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    weights: dict[str, Tensor] = {}

    def add_affine(name: str, *shape: int, norm: bool = False) -> None:
        weights[f"{name}.weight"] = 1 + draw(*shape) if norm else draw(*shape)
        weights[f"{name}.bias"] = draw(shape[0])

    for number, (kernel, _) in enumerate(CONVOLUTIONS):
        place = f"{AUDIO}local_encoder.conv_layers.{number}"
        weights[f"{place}.0.weight"] = draw(CHANNELS, 1 if number == 0 else CHANNELS, kernel, scale=0.6)
        add_affine(f"{place}.2.1", CHANNELS, norm=True)
    add_affine(f"{AUDIO}project_features.1", CHANNELS, norm=True)
    add_affine(f"{AUDIO}project_features.2", SIZE, CHANNELS)
    for number in range(1, 6):
        add_affine(f"{AUDIO}relative_positional_encoder.{number}.0", SIZE, SIZE // GROUPS, 19)
    add_affine(f"{AUDIO}context_encoder.norm", SIZE, norm=True)
    for place in (*(f"{AUDIO}context_encoder.blocks.{n}" for n in range(4)), *(f"blocks.{n}" for n in range(8))):
        add_affine(f"{place}.norm1", SIZE, norm=True)
        add_affine(f"{place}.attn.qkv", 3 * SIZE, SIZE)
        add_affine(f"{place}.attn.proj", SIZE, SIZE)
        add_affine(f"{place}.norm2", SIZE, norm=True)
        add_affine(f"{place}.mlp.fc1", WIDE, SIZE)
        add_affine(f"{place}.mlp.fc2", SIZE, WIDE)
    weights[f"{AUDIO}extra_tokens"] = draw(1, 10, SIZE, scale=1.0)
    weights[f"{AUDIO}alibi_scale"] = torch.tensor([1.5, -0.2, 0.7]).view(1, 1, HEADS, 1, 1)
    return weights


def write_checkpoint(path: Path, weights: object) -> Path:
    # fairseq stores the settings of the training beside the weights, as objects of its own classes.
    torch.save({"args": argparse.Namespace(task="emotion2vec"), "cfg": None, "model": weights}, path)
    return path
