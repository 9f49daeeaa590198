"""What a shard set holds, in figures: from the index alone, one shard at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.read import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """One target's labels over a split, on 0..1."""

    num_labelled: int
    mean: float
    deviation: float
    """Divides by n; NaN, like the mean, when nothing is labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStatistics:
    """What a split holds."""

    split: str
    num_shards: int
    num_utterances: int
    num_speakers: int
    """Of those that are known."""

    hours: float
    shortest_s: float
    longest_s: float
    labels: Mapping[str, LabelStatistics]


def split_statistics(shard_set: ShardSet, split: str) -> SplitStatistics:
    """Counts, durations and label moments of one split.

    Raises:
        ConfigError: no such split.
        ShardError: the index is stale or unreadable.
    """
    shards = shard_set.shards_of([split])
    sums = {target: np.zeros(3) for target in shard_set.manifest.targets}
    speakers: set[str] = set()
    shortest, longest = math.inf, 0
    for shard in shards:
        rows = shard_set.rows(shard.name)
        speakers |= {speaker for speaker in rows.speakers if speaker is not None}
        shortest = min(shortest, int(rows.num_samples.min()))
        longest = max(longest, int(rows.num_samples.max()))
        for target, total in sums.items():
            label = rows.labels[target][~np.isnan(rows.labels[target])]
            total += (len(label), label.sum(), np.square(label).sum())
    return SplitStatistics(
        split=split,
        num_shards=len(shards),
        num_utterances=sum(shard.num_utterances for shard in shards),
        num_speakers=len(speakers),
        hours=sum(shard.num_samples for shard in shards) / SAMPLE_RATE_HZ / 3600,
        shortest_s=shortest / SAMPLE_RATE_HZ,
        longest_s=longest / SAMPLE_RATE_HZ,
        labels={target: _moments(*total) for target, total in sums.items()},
    )


def _moments(count: float, total: float, squares: float) -> LabelStatistics:
    if not count:
        return LabelStatistics(num_labelled=0, mean=math.nan, deviation=math.nan)
    mean = float(total / count)
    variance = max(0.0, float(squares / count) - mean**2)  # labels are on 0..1: nothing is lost to cancellation
    return LabelStatistics(num_labelled=int(count), mean=mean, deviation=math.sqrt(variance))
