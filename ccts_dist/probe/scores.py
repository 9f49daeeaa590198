"""CCC with an interval from sums per speaker: pure functions, float64 throughout."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ccts_dist.losses.ccc import concordance_from_sums, counted

REPLICATES = 1_000
_EPS = 1e-12
"""In CCC's denominator, where constant predictions of a constant label would give 0 / 0."""


def row_sums(
    prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"]
) -> Float64[Tensor, "batch 6 dim"]:
    """Each row's part of the six sums of CCC (``losses.ccc.SUM_ROWS``); 0 where there is no label or no weight."""
    mask = counted(label, weight)
    zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
    p = torch.where(mask, prediction.detach().double(), zero)
    y = torch.where(mask, label.double(), zero)
    return torch.stack([mask.double(), p, y, p * p, y * y, p * y], dim=1)


def ccc_of(sums: Float64[Tensor, "6 dim"]) -> Float64[Tensor, " dim"]:
    """CCC of each column; 0 with fewer than two labels."""
    return concordance_from_sums(sums, eps=_EPS)


def clusters_of(speakers: Sequence[str | None]) -> list[int]:
    """For each utterance, the number of its speaker; an utterance whose speaker is unknown is a speaker of its own."""
    numbers: dict[str | int, int] = {}
    return [
        numbers.setdefault(row if speaker is None else speaker, len(numbers)) for row, speaker in enumerate(speakers)
    ]


def bootstrap_interval(
    sums: Float64[Tensor, "speakers 6 dim"], *, seed: int = 0, replicates: int = REPLICATES
) -> Float64[Tensor, "2 dim"]:
    """95 % percentile interval of each column's CCC, speakers drawn with replacement; NaN with a single speaker.

    The columns are resampled alike. The same on every machine for equal sums and seed.
    """
    num_speakers = len(sums)
    if num_speakers < 2:
        return torch.full((2, sums.shape[2]), torch.nan, dtype=torch.float64)
    generator = np.random.default_rng(seed)
    flat, drawn = sums.flatten(1), []
    for _ in range(replicates):
        times = np.bincount(generator.integers(0, num_speakers, num_speakers), minlength=num_speakers)
        drawn.append(torch.from_numpy(times).double() @ flat)
    by_replicate = torch.stack(drawn).unflatten(1, sums.shape[1:]).transpose(0, 1)  # [6 replicates dim]
    ccc = ccc_of(by_replicate.flatten(1)).unflatten(0, (replicates, -1))
    return torch.quantile(ccc, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)


def add_by_cluster(
    total: Float64[Tensor, "speakers 6 dim"], cluster: Int64[Tensor, " batch"], rows: Float64[Tensor, "batch 6 dim"]
) -> None:
    """Add each row's sums to those of its speaker, in place."""
    total.index_add_(0, cluster, rows)
