"""Statistics of a shard set: from the index alone, one shard at a time."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ccts_dist.errors import without_controls
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.set_warnings import set_warnings
from ccts_dist.shards.shard_set import ShardSet

NUM_BINS = 10
"""Bins of a label's histogram, equally wide, over 0..1; the last one includes 1."""

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """One target's labels over a split, on 0..1."""

    num_labelled: int
    mean: float
    std: float
    """Divides by n; NaN, like the mean, when nothing is labelled."""

    histogram: tuple[int, ...]
    """Utterances in each of ``NUM_BINS`` bins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStatistics:
    """Statistics of a split."""

    split: str
    num_shards: int
    num_utterances: int
    num_speakers: int
    """Number of known speakers."""

    num_without_speaker: int
    num_unlabelled: int
    """Utterances without a label of any target."""

    hours: float
    shortest_s: float
    longest_s: float
    durations: Mapping[int, int]
    """Utterances by their whole seconds."""

    duration_tenths: Mapping[int, int]
    """Utterances by their whole tenths of a second."""

    categories: Mapping[str, int]
    """The most frequent first."""

    labels: Mapping[str, LabelStatistics]

    def in_words(self) -> str:
        """For people: a few lines, and a bar per bin of each target."""
        lines = [
            f"{self.split}: {self.num_utterances} utterances, {self.hours:.2f} h in {self.num_shards} shards, "
            f"{self.num_speakers} speakers, {self.shortest_s:.2f} to {self.longest_s:.2f} s"
        ]
        lacking = [(self.num_unlabelled, "without any label"), (self.num_without_speaker, "without a known speaker")]
        if any(count for count, _ in lacking):
            lines.append("  " + ", ".join(f"{count} {what}" for count, what in lacking if count))
        width = max([12, *map(len, self.labels)])
        for target, label in self.labels.items():
            if label.num_labelled:
                moments = f"mean {label.mean:.3f}, standard deviation {label.std:.3f} on 0..1"
                lines.append(f"  {target:<{width}} |{bars(label.histogram)}| {moments}, {label.num_labelled} labelled")
            else:
                lines.append(f"  {target:<{width}} no labels on 0..1, 0 labelled")
        if self.categories:
            lines.append("  categories: " + ", ".join(f"{name} {count}" for name, count in self.categories.items()))
        return without_controls("\n".join(lines), keep="\n")  # names are those of whoever built the set


def split_statistics(shard_set: ShardSet, split: str) -> SplitStatistics:
    """Counts, durations and label moments of one split.

    Raises:
        ConfigError: no such split.
        ShardError: the index is stale or unreadable.
    """
    shards = shard_set.shards_of([split])
    sums = _Sums(shard_set.manifest.targets)
    for shard in shards:
        sums.add(shard_set.rows(shard.name))
    return SplitStatistics(
        split=split,
        num_shards=len(shards),
        num_utterances=sum(shard.num_utterances for shard in shards),
        num_speakers=len(sums.speakers),
        num_without_speaker=sums.without_speaker,
        num_unlabelled=sums.unlabelled,
        hours=sum(shard.num_samples for shard in shards) / SAMPLE_RATE_HZ / 3600,
        shortest_s=sums.shortest / SAMPLE_RATE_HZ,
        longest_s=sums.longest / SAMPLE_RATE_HZ,
        durations=dict(sorted(sums.durations.items())),
        duration_tenths=dict(sorted(sums.tenths.items())),
        categories=dict(sums.categories.most_common()),
        labels={target: _moments(sums.moments[target], sums.histograms[target]) for target in sums.moments},
    )


def set_statistics(shard_set: ShardSet, splits: Sequence[SplitStatistics]) -> dict[str, Any]:
    """The figures of a whole set as plain data, as JSON takes them: what is not a number is None."""
    manifest = shard_set.manifest
    return {
        "corpus": manifest.corpus,
        "release": manifest.release,
        "scale": list(manifest.scale),
        "digest": shard_set.digest,
        "teacher": None if manifest.teacher is None else manifest.teacher.name,
        "counts": dict(manifest.counts),
        "splits": [_plain(asdict(figures)) for figures in splits],
        "warnings": set_warnings(shard_set),
    }


def bars(counts: Sequence[int]) -> str:
    """A character for each count, as high as its share of the largest one; only none at all is empty.

    >>> bars([0, 1, 4, 8])
    ' ▁▄█'
    """
    most = max(counts, default=0)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] if count else _BARS[0] for count in counts)


class _Sums:
    """Sums over the shards of a split."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.moments = {target: np.zeros(3) for target in targets}
        self.histograms = {target: np.zeros(NUM_BINS, np.int64) for target in targets}
        self.speakers: set[str] = set()
        self.categories = Counter[str]()
        self.durations, self.tenths = Counter[int](), Counter[int]()
        self.without_speaker = self.unlabelled = self.longest = 0
        self.shortest = math.inf

    def add(self, rows: ShardRows) -> None:
        """One shard more."""
        speakers = list(rows.speakers)
        self.speakers.update(speaker for speaker in speakers if speaker is not None)
        self.without_speaker += speakers.count(None)
        self.categories.update(category for category in rows.categories if category is not None)
        self.shortest = min(self.shortest, int(rows.num_samples.min()))
        self.longest = max(self.longest, int(rows.num_samples.max()))
        for found, samples in ((self.durations, SAMPLE_RATE_HZ), (self.tenths, SAMPLE_RATE_HZ // 10)):
            values, counts = np.unique(rows.num_samples // samples, return_counts=True)
            found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        labelled = np.zeros(len(rows), bool)
        for target, total in self.moments.items():
            known = ~np.isnan(rows.labels[target])
            label = rows.labels[target][known]
            labelled |= known
            total += (len(label), label.sum(), np.square(label).sum())
            self.histograms[target] += np.histogram(label, bins=NUM_BINS, range=(0.0, 1.0))[0]
        self.unlabelled += int((~labelled).sum())


def _moments(sums: np.ndarray, histogram: np.ndarray) -> LabelStatistics:
    (count, total, squares), bins = sums, tuple(histogram.tolist())
    if not count:
        return LabelStatistics(num_labelled=0, mean=math.nan, std=math.nan, histogram=bins)
    mean = float(total / count)
    variance = max(0.0, float(squares / count) - mean**2)  # labels are on 0..1: nothing is lost to cancellation
    return LabelStatistics(num_labelled=int(count), mean=mean, std=math.sqrt(variance), histogram=bins)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_set(shard_set: ShardSet) -> list[str]:
    """Corpus, scale, digest, teacher and counts of a whole set, for people."""
    manifest, (low, high) = shard_set.manifest, shard_set.manifest.scale
    lines = [f"{manifest.title}, rated {low:g} to {high:g}, digest {shard_set.digest[:12]}"]
    if manifest.teacher is not None:
        lines.append(f"carries the outputs of teacher {manifest.teacher.name} ({manifest.teacher.weight_digest[:12]})")
    return [*lines, ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(manifest.counts.items()))]
