"""The threshold of a gate, given the share of the training utterances that it is to leave out."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt32
from torch import Tensor

from ccts_dist.distributed import Ranks, run_on_all_ranks, sum_over_ranks
from ccts_dist.errors import FetchError, ShardError, TeacherError
from ccts_dist.losses.gate import residuals, widest_residual
from ccts_dist.records import Condition
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache

_ABOVE = 1 + 1e-6
"""Beyond the last residual that passes where there is no next one: more than float32 loses of it."""


def threshold_rejecting(
    share: float,
    cache: TeacherCache,
    shard_set: ShardSet,
    splits: Sequence[str],
    *,
    ranks: Ranks,
    skip_damaged: bool = False,
    condition: Condition | None = None,
) -> float:
    """The threshold, in standard deviations, beyond which ``share`` of the labelled utterances have their widest
    residual.

    Every rank must call it; each reads its part of the shards, and keeps 4 bytes per utterance. The result is the same
    on every rank, and for any number of them. Of N utterances floor(share * N) are omitted, or fewer if several have
    the very residual at which the cut falls. Utterances without a label pass every gate of residuals, and do not count
    here.

    Args:
        share: 0..1, below 1.
        cache: the teacher's.
        condition: whose residuals are taken; None for the cache's own. A target whose standard deviation is infinite is
            not looked at.
        shard_set: whose labels are compared.
        splits: the training splits.
        ranks: this process's among those of its process group.
        skip_damaged: leave out of account an utterance whose cached output is damaged, instead of raising.

    Raises:
        TeacherError: an output is missing or damaged, or no utterance has a label; on all ranks alike.
        ShardError: a shard's index cannot be read, or a store does not answer; likewise.
    """
    own = _all_widest(cache, condition or cache.condition, shard_set, splits, ranks, skip_damaged)
    return _cut(own, share, f"{cache.root}: no utterance of {', '.join(splits)}")


def rejected_fraction(
    threshold: float,
    cache: TeacherCache,
    shard_set: ShardSet,
    splits: Sequence[str],
    *,
    ranks: Ranks,
    skip_damaged: bool = False,
    condition: Condition | None = None,
) -> float:
    """Share of all utterances that the any-dimension gate leaves out; those without a label are among all.

    Arguments, errors and the rest are as of ``threshold_rejecting``; of splits without a label the share is 0.
    """
    condition = condition or cache.condition
    own = _all_widest(cache, condition, shard_set, splits, ranks, skip_damaged)
    beyond = sum_over_ranks(torch.tensor([float((own > threshold).sum())], dtype=torch.float64))
    return float(beyond) / sum(shard.num_utterances for shard in shard_set.shards_of(splits))


def _all_widest(
    cache: TeacherCache,
    condition: Condition,
    shard_set: ShardSet,
    splits: Sequence[str],
    ranks: Ranks,
    skip_damaged: bool,
) -> Float32[np.ndarray, " rows"]:
    """max_j |r_j| / s_j of the labelled utterances in this rank's part of the shards; every rank must call it."""
    shards = shard_set.shards_of(splits)[ranks.rank :: ranks.num_ranks]

    def read() -> Float32[np.ndarray, " rows"]:
        own = [_widest(cache, condition, shard_set.rows(shard.name), skip_damaged) for shard in shards]
        return np.concatenate([np.zeros(0, np.float32), *own])

    return run_on_all_ranks(read)


def _widest(
    cache: TeacherCache, condition: Condition, rows: ShardRows, skip_damaged: bool
) -> Float32[np.ndarray, " rows"]:
    """max_j |r_j| / s_j of one shard's labelled utterances."""
    prediction, label = labelled_predictions(cache, rows, skip_damaged=skip_damaged)
    looked_at = torch.tensor(condition.residual_std, dtype=torch.float64).isfinite()
    residual = torch.where(looked_at, residuals(condition, prediction, label), torch.nan)
    labelled = ~torch.isnan(residual).all(1)
    return widest_residual(residual[labelled], condition.residual_std).float().numpy()


def labelled_predictions(
    cache: TeacherCache, rows: ShardRows, *, skip_damaged: bool = False
) -> tuple[Float32[Tensor, "rows dim"], Float64[Tensor, "rows dim"]]:
    """Output of the teacher for one shard's utterances, and their labels.

    Utterances without any label are not looked up: their predictions are NaN, as those of damaged ones are that are
    skipped.

    Raises:
        TeacherError: an output is missing, or damaged and not skipped.
        FetchError: a store does not answer.
    """
    label = np.stack([rows.labels[target] for target in cache.targets], axis=1)
    prediction = np.full(label.shape, np.nan, np.float32)
    for row in np.flatnonzero(~np.isnan(label).all(1)):
        try:
            prediction[row] = cache.read(rows.shard, int(row), rows.keys[int(row)]).prediction
        except (ShardError, TeacherError) as error:
            if not skip_damaged or isinstance(error, FetchError):
                raise
    return torch.from_numpy(prediction), torch.from_numpy(label)


def _cut(own: Float32[np.ndarray, " rows"], share: float, whose: str) -> float:
    """Between the last residual of all ranks that passes and the next one."""
    num_rows = int(sum_over_ranks(torch.tensor(float(len(own)), dtype=torch.float64)))
    if num_rows == 0:
        raise TeacherError(
            f"{whose} has a label to compare with. Set distill.threshold instead of distill.reject_fraction."
        )
    num_rejected = math.floor(share * num_rows + 1e-9)  # .29 * 100 is a little less than 29
    last = kth_smallest(own, num_rows - num_rejected)
    following = kth_smallest(own, num_rows - num_rejected + 1) if num_rejected else last
    # Halfway, so that rounding in the gate takes no part: these are float32.
    return (last + (following if last < following < math.inf else last * _ABOVE)) / 2


def kth_smallest(own: Float32[np.ndarray, " rows"], k: int) -> float:
    """The k-th smallest number of all ranks together, counted from 1; exact. Every rank must call it.

    Bits of floats that are not negative are in the order of the floats: one byte after the other is found, by counting
    those with the same bytes before it. Nothing but counts goes over the network.

    Args:
        own: this rank's numbers, none of them negative or NaN.
        k: between 1 and the count of all.
    """
    bits: UInt32[np.ndarray, " rows"] = own.view(np.uint32)
    found = 0
    for shift in (24, 16, 8, 0):
        byte = (bits >> np.uint32(shift)) & np.uint32(255)
        counts = torch.from_numpy(np.bincount(byte, minlength=256).astype(np.float64))
        up_to = sum_over_ranks(counts).cumsum(0).numpy()
        at = int(np.searchsorted(up_to, k))
        k -= int(up_to[at - 1]) if at else 0
        found = found << 8 | at
        bits = bits[byte == at]
    return float(np.uint32(found).view(np.float32))
