"""The fits on a teacher's outputs: the condition, and the mean and standard deviation of its embedding.

Read shard by shard and put together in the shards' order, so that the result has the same bits whatever ranks read
which shard.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64

from ccts_dist.errors import TeacherError
from ccts_dist.losses.ccc import SUM_ROWS
from ccts_dist.losses.gate import apply_gate, condition_sums, fit_condition
from ccts_dist.records import Condition
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import read_cached_outputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitSums:
    """Everything a fit needs to know of some utterances."""

    condition: Float64[np.ndarray, "6 dim"]
    """Sums as ``losses.gate.condition_sums`` gives them."""

    num_rows: int
    mean: Float64[np.ndarray, " hidden"]
    """Mean of the embedding."""

    squares: Float64[np.ndarray, " hidden"]
    """Sum of the squared differences from ``mean``."""

    @property
    def std(self) -> Float64[np.ndarray, " hidden"]:
        """Standard deviation of each feature of the embedding; divides by n."""
        return np.sqrt(self.squares / max(1, self.num_rows))

    def named(self) -> dict[str, tuple[float, ...]]:
        """The condition's sums by name, one number per target."""
        return {name: tuple(row) for name, row in zip(SUM_ROWS, self.condition.tolist(), strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardFit:
    """One shard's part in a fit."""

    sums: FitSums
    prediction: Float32[np.ndarray, "rows dim"]
    """The teacher's."""

    label: Float64[np.ndarray, "rows dim"]
    """NaN where nobody rated."""


def read_shard_fit(
    cache_root: Path, shard_set: ShardSet, shard: str, *, targets: Sequence[str], embedding_size: int
) -> ShardFit:
    """One cached shard's outputs beside the labels of its source shard.

    Raises:
        TeacherError: the cache shard is damaged, or its keys are not the source shard's in their order.
        ShardError: the source's index cannot be read.
    """
    rows = shard_set.rows(shard)
    outputs = list(read_cached_outputs(cache_root, shard, embedding_size=embedding_size, num_targets=len(targets)))
    if tuple(key for key, _ in outputs) != tuple(rows.keys):
        raise TeacherError(
            f"{cache_root / shard}: its keys are not the source shard's. Delete it, run launch/cache_teacher.py again."
        )
    prediction = np.array([output.prediction for _, output in outputs], np.float32).reshape(-1, len(targets))
    label = np.stack([rows.labels[target] for target in targets], axis=1)
    embedding = np.array([output.embedding for _, output in outputs], np.float64).reshape(-1, embedding_size)
    mean = embedding.sum(0) / max(1, len(embedding))
    sums = FitSums(
        condition=condition_sums(torch.from_numpy(prediction), torch.from_numpy(label)).numpy(),
        num_rows=len(embedding),
        mean=mean,
        squares=((embedding - mean) ** 2).sum(0),
    )
    return ShardFit(sums=sums, prediction=prediction, label=label)


def add_fit_sums(first: FitSums, second: FitSums) -> FitSums:
    """The sums of both; means and squared differences by Chan, Golub, LeVeque (1979), which cancels nothing."""
    total = first.num_rows + second.num_rows
    shift = second.mean - first.mean
    share = second.num_rows / max(1, total)
    return FitSums(
        condition=first.condition + second.condition,
        num_rows=total,
        mean=first.mean + shift * share,
        squares=first.squares + second.squares + shift**2 * (first.num_rows * share),
    )


def fit_teacher(
    parts: Iterable[FitSums], *, targets: Sequence[str], splits: Sequence[str]
) -> tuple[Condition, FitSums]:
    """The condition over all parts, and the sums it was made of.

    Raises:
        TeacherError: a target has too few labels, or predictions are not finite.
    """
    sums = reduce(add_fit_sums, parts)
    return fit_condition(torch.from_numpy(sums.condition), targets, splits), sums


def num_rejected(part: ShardFit, condition: Condition, threshold: float) -> int:
    """Utterances that the any-dimension gate at this threshold (in standard deviations) would not distil."""
    gate_mask = apply_gate(
        "any-dimension",
        threshold,
        condition,
        torch.from_numpy(part.prediction),
        torch.from_numpy(part.label),
        torch.ones(len(part.label)),
    )
    return int((~gate_mask).sum())
