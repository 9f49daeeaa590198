"""A split's sums speaker by speaker, which speakers may be drawn from and groups be made of."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def clusters_of(speakers: Sequence[str | None]) -> list[int]:
    """For each utterance, the number of its speaker; an utterance whose speaker is unknown is a speaker of its own."""
    numbers: dict[str | int, int] = {}
    return [
        numbers.setdefault(row if speaker is None else speaker, len(numbers)) for row, speaker in enumerate(speakers)
    ]


def add_by_cluster(
    total: Float64[Tensor, "speakers sums dim"],
    cluster: Int64[Tensor, " batch"],
    rows: Float64[Tensor, "batch sums dim"],
) -> None:
    """Add each row's sums (``measures.row_sums``) to those of its speaker, in place."""
    total.index_add_(0, cluster, rows)


def sums_by_speaker(
    speakers: Sequence[str | None], rows: Float64[Tensor, "rows sums dim"]
) -> Float64[Tensor, "speakers sums dim"]:
    """Each speaker's sums, in the order of their first utterance."""
    cluster = clusters_of(speakers)
    total = torch.zeros(1 + max(cluster, default=-1), *rows.shape[1:], dtype=torch.float64)
    add_by_cluster(total, torch.tensor(cluster, dtype=torch.int64), rows)
    return total
