"""Check that a condition is the fit of a set's labels on a cache's outputs that it states it is; for
``shards/check.py``."""

from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.errors import TeacherError
from ccts_dist.losses.gate import condition_sums, fit_condition
from ccts_dist.records import Condition
from ccts_dist.shards.check.findings import Finding
from ccts_dist.shards.format.schema import CONDITION_NAME
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.shards.teacher_cache import TeacherCache, open_merged_teacher, open_teacher_cache
from ccts_dist.teacher.threshold import labelled_predictions

TOLERANCE = 1e-6
"""Tolerance of labels on 0..1, and of the standard deviation: far above what another order of sums changes."""


def refit_findings(shards: str, teacher: str | None) -> list[Finding]:
    """Evidence against the condition of a teacher cache, or of the outputs that merged shards carry.

    It is fitted once more, on the labelled utterances of the splits that it names, and must come out the same: a fit
    that knew labels of other utterances does not. Reads every cached output of those splits. The set and the cache must
    be sound otherwise.
    """
    shard_set = open_shard_set(shards)
    if teacher is not None:
        cache = open_teacher_cache(teacher, shard_set)
    elif shard_set.manifest.teacher is not None:
        cache = open_merged_teacher(shard_set)
    else:
        return []
    stated = cache.condition
    try:
        found, sums = fit_again(shard_set, cache)
    except TeacherError as error:
        return [Finding(shard=CONDITION_NAME, what=f"cannot be the fit on {', '.join(stated.splits)}: {error}")]
    return [Finding(shard=CONDITION_NAME, what=what) for what in _differences(stated, found, sums)]


def fit_again(shard_set: ShardSet, cache: TeacherCache) -> tuple[Condition, Float64[Tensor, "6 dim"]]:
    """The condition that a cache's outputs and the set's labels give on the splits that its own names, and its sums.

    Raises:
        TeacherError: an output is missing or damaged, or there are too few labels.
        ShardError: a shard's index cannot be read.
    """
    splits = cache.condition.splits
    parts = (labelled_predictions(cache, shard_set.rows(shard.name)) for shard in shard_set.shards_of(splits))
    sums = reduce(torch.add, (condition_sums(*part) for part in parts))
    return fit_condition(sums, cache.targets, splits), sums


def _differences(stated: Condition, found: Condition, sums: Float64[Tensor, "6 dim"]) -> Iterator[str]:
    """Lines are compared where the teacher's predictions lie: w and b by themselves are mostly rounding where it states
    nearly the same of all utterances."""
    for number, (target, (n, p, _, pp, _, _)) in enumerate(zip(stated.targets, sums.T.tolist(), strict=True)):
        mean, std = p / n, max(0.0, pp / n - (p / n) ** 2) ** 0.5
        tilt, shift = stated.w[number] - found.w[number], stated.b[number] - found.b[number]
        if stated.num_rows[number] != found.num_rows[number]:
            names = ("num_rows",)
        elif abs(tilt * mean + shift) + 3 * std * abs(tilt) > TOLERANCE:
            names = ("w", "b")
        elif abs(stated.residual_std[number] - found.residual_std[number]) > TOLERANCE:
            names = ("residual_std",)
        else:
            continue
        has, give = (
            ", ".join(f"{name} = {getattr(one, name)[number]:.9g}" for name in names) for one in (stated, found)
        )
        where = ", ".join(stated.splits)
        yield f"is not the fit on {where}: of {target!r} it has {has}, and the labels and outputs there give {give}"
