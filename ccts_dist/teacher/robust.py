"""The condition fitted without its outliers: what a gate of ``distill.residual_scale`` "robust" compares residuals
with."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from ccts_dist.distributed import Ranks, run_on_all_ranks, sum_over_ranks
from ccts_dist.losses.gate import condition_sums, fit_condition, residuals
from ccts_dist.records import Condition
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache
from ccts_dist.teacher.threshold import kth_smallest, labelled_predictions

MAD_TO_DEVIATION = 1.4826
"""1 / the 75 % quantile of the standard normal distribution: the median absolute residual times it is the standard
standard deviation, if residuals are Gaussian."""

OUTLIER = 3.0
"""Residuals beyond so many robust standard deviations take no part in the next fit: .3 % of Gaussian ones."""

MOST_FITS = 20
"""Fits at most. Most fits settle within ten."""


def robust_condition(
    cache: TeacherCache,
    shard_set: ShardSet,
    splits: Sequence[str],
    *,
    ranks: Ranks,
    skip_damaged: bool = False,
) -> Condition:
    """Least squares without outliers, and 1.4826 times the median absolute residual as each target's scale.

    Labels are fitted on the teacher's predictions; rows whose residual exceeds three such scales are omitted, and
    the rest is fitted again, until no row changes sides or ``MOST_FITS`` fits are made. The median is always over all
    labelled rows; where it is 0, the standard deviation stands in for it. Every rank must call it; each reads its part
    of the shards. The result is the same on every rank and, up to rounding of float64 sums, for any number of them.

    Args:
        cache: the teacher's.
        shard_set: whose labels are compared.
        splits: the training splits.
        ranks: this process's among those of its process group.
        skip_damaged: leave out of account an utterance whose cached output is damaged, instead of raising.

    Raises:
        TeacherError: an output is missing or damaged, or there are too few labels; on all ranks alike.
        ShardError: a shard's index cannot be read, or a store does not answer; likewise.
    """
    shards = shard_set.shards_of(splits)[ranks.rank :: ranks.num_ranks]

    def read() -> tuple[Float32[Tensor, "rows dim"], Float64[Tensor, "rows dim"]]:
        none = torch.zeros(0, len(cache.targets))
        parts = [labelled_predictions(cache, shard_set.rows(one.name), skip_damaged=skip_damaged) for one in shards]
        prediction = torch.cat([none, *(one for one, _ in parts)])
        label = torch.cat([none.double(), *(one for _, one in parts)])
        return prediction, torch.where(torch.isnan(prediction), torch.nan, label)

    prediction, label = run_on_all_ranks(read)
    return fit_without_outliers(prediction, label, cache.targets, splits)


def fit_without_outliers(
    prediction: Float32[Tensor, "rows dim"],
    label: Float64[Tensor, "rows dim"],
    targets: Sequence[str],
    splits: Sequence[str],
) -> Condition:
    """See ``robust_condition``; ``prediction`` and ``label`` are this rank's rows. Every rank must call it."""
    rated = ~torch.isnan(label)
    fit, inside = _fit(prediction, label, rated, rated, targets, splits)
    before = rated
    for _ in range(MOST_FITS - 1):
        if not sum_over_ranks((before != inside).sum().double()[None]).any():
            break
        before = inside
        fit, inside = _fit(prediction, label, rated, inside, targets, splits)
    return fit


def _fit(
    prediction: Float32[Tensor, "rows dim"],
    label: Float64[Tensor, "rows dim"],
    rated: Bool[Tensor, "rows dim"],
    inside: Bool[Tensor, "rows dim"],
    targets: Sequence[str],
    splits: Sequence[str],
) -> tuple[Condition, Bool[Tensor, "rows dim"]]:
    """The fit of some labels, with the robust scale of all, and which labels are within three of it."""
    sums = sum_over_ranks(condition_sums(prediction, torch.where(inside, label, torch.nan)))
    fit = fit_condition(sums, targets, splits)
    size = residuals(fit, prediction, label).abs()
    fit = replace(fit, residual_std=_scales(size, rated, fit.residual_std))
    return fit, rated & ~(size > OUTLIER * torch.tensor(fit.residual_std, dtype=torch.float64))


def _scales(
    size: Float64[Tensor, "rows dim"], rated: Bool[Tensor, "rows dim"], standard: Sequence[float]
) -> tuple[float, ...]:
    """1.4826 times the median of each column; the standard deviation where half of the residuals are 0."""
    scales = []
    for column, count in enumerate(sum_over_ranks(rated.double().sum(0)).tolist()):
        own = size[rated[:, column], column].float().numpy()
        scales.append(MAD_TO_DEVIATION * kth_smallest(own, (int(count) + 1) // 2) or standard[column])
    return tuple(scales)
