"""A checkpoint of Modified CPC as CPC_audio wrote it, at a small size."""

from pathlib import Path

import torch
from torch import Tensor

CONVOLUTIONS = [(10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1)]
"""Kernel, stride, zeros at each end, as published."""

CHANNELS = HIDDEN = 16


def published(*, gates: int = 4, num_levels: int = 2) -> dict[str, Tensor]:
    """Weights under the names of a checkpoint of CPC_audio, at a small size."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {}
    for number, (kernel, _, _) in enumerate(CONVOLUTIONS):
        weights[f"gEncoder.conv{number}.weight"] = draw(CHANNELS, 1 if number == 0 else CHANNELS, kernel)
        weights[f"gEncoder.conv{number}.bias"] = draw(CHANNELS)
        weights[f"gEncoder.batchNorm{number}.weight"] = 1 + draw(1, CHANNELS, 1)
        weights[f"gEncoder.batchNorm{number}.bias"] = draw(1, CHANNELS, 1)
    for level in range(num_levels):
        weights[f"gAR.baseNet.weight_ih_l{level}"] = draw(gates * HIDDEN, CHANNELS if level == 0 else HIDDEN)
        weights[f"gAR.baseNet.weight_hh_l{level}"] = draw(gates * HIDDEN, HIDDEN)
        weights[f"gAR.baseNet.bias_ih_l{level}"] = draw(gates * HIDDEN)
        weights[f"gAR.baseNet.bias_hh_l{level}"] = draw(gates * HIDDEN)
    return weights


def write_checkpoint(path: Path, weights: object) -> Path:
    torch.save({"config": {"hiddenEncoder": CHANNELS, "arMode": "LSTM"}, "weights": weights}, path)
    return path
