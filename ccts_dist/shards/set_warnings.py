"""Properties of a sound shard set that make scores mean less than they seem to; from the index alone."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ccts_dist.audio.clipping import CLIPPED_SHARE
from ccts_dist.errors import ShardError
from ccts_dist.progress import log
from ccts_dist.records import SHARE
from ccts_dist.shards.shard_set import ShardSet, open_shard_set

SAME_LABEL = 1e-9
"""Labels on 0..1 that differ by less are equal: text and its scale have rounded them."""

QUARTER = 0.25
"""Share of the scale at either end that is empty where ratings are probably of a narrower one."""

FEWEST_RATINGS = 50
"""Ratings below which an empty end of the scale means nothing."""

_MOST_NAMED = 3
"""Speakers that a line names."""


def set_warnings(shard_set: ShardSet) -> list[str]:
    """A line for each doubtful fact of a shard set.

    It may be a pair of splits that share speakers, a target whose labels never vary in a split, ratings that leave an
    end of their scale empty, or recordings that were clipped when the set was built.

    Raises:
        ShardError: the index is stale or unreadable.
    """
    speakers: dict[str, set[str]] = {}
    labels: dict[tuple[str, str], tuple[float, float, int]] = {}
    for split in shard_set.manifest.split_names:
        known = speakers.setdefault(split, set())
        for shard in shard_set.shards_of([split]):
            rows = shard_set.rows(shard.name)
            known.update(speaker for speaker in rows.speakers if speaker is not None)
            for target, values in rows.labels.items():
                if target.endswith(SHARE):  # of an answer that nobody gave, it is 0 throughout
                    continue
                given = values[~np.isnan(values)]
                if len(given):
                    low, high, count = labels.get((split, target), (np.inf, -np.inf, 0))
                    labels[split, target] = min(low, given.min()), max(high, given.max()), count + len(given)
    scale = shard_set.manifest.scale
    return [*_shared(speakers), *_constant(labels), *_narrow(labels, scale), *_clipped(shard_set)]


def print_warnings(place: str | Path) -> None:
    """Print ``set_warnings`` of the set at ``place`` on stderr; a set that cannot be read back is no error here."""
    try:
        lines = set_warnings(open_shard_set(place))
    except ShardError as error:  # a place that lets write and not read
        lines = [f"shared speakers and constant labels were not looked for: {error}"]
    for line in lines:
        log(line)


def _shared(speakers: dict[str, set[str]]) -> Iterator[str]:
    splits = list(speakers)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            both = sorted(speakers[one] & speakers[other])
            if both:
                named = ", ".join(map(repr, both[:_MOST_NAMED])) + (", ..." if len(both) > _MOST_NAMED else "")
                yield (
                    f"warning: {one} and {other} share {len(both)} of {len(speakers[one])} and {len(speakers[other])} "
                    f"speakers ({named}): a score on one after training on the other is not that of new speakers"
                )


def _constant(labels: dict[tuple[str, str], tuple[float, float, int]]) -> Iterator[str]:
    splits: dict[tuple[str, float], list[str]] = defaultdict(list)
    for (split, target), (low, high, count) in labels.items():
        if count > 1 and high - low <= SAME_LABEL:
            splits[target, float(low)].append(split)
    for (target, label), names in splits.items():
        yield (
            f"warning: every label of {target!r} in {', '.join(names)} is {label:g} (on 0..1): its CCC is 0 whatever "
            "is predicted"
        )


def _narrow(labels: dict[tuple[str, str], tuple[float, float, int]], scale: tuple[float, ...]) -> Iterator[str]:
    """Over all targets: those of one corpus share a scale, and some of its ratings come near both ends."""
    if sum(count for _, _, count in labels.values()) < FEWEST_RATINGS:
        return
    low, high = min(low for low, _, _ in labels.values()), max(high for _, high, _ in labels.values())
    if high - low > SAME_LABEL and (low > QUARTER or high < 1 - QUARTER):
        lowest, highest = (scale[0] + label * (scale[1] - scale[0]) for label in (low, high))
        yield (
            f"warning: all ratings are from {lowest:g} to {highest:g}, on a scale from {scale[0]:g} to {scale[1]:g}: "
            "another scale (--scale) changes every prediction"
        )


def _clipped(shard_set: ShardSet) -> Iterator[str]:
    count = shard_set.manifest.counts.get("clipped", 0)
    if count:
        yield (
            f"warning: {count} recordings have more than {CLIPPED_SHARE:.0%} of their samples at full scale: they are "
            "clipped, or of another scale than their format states"
        )
