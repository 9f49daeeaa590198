"""Facts of a probe's splits in the index, before any audio is read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccts_dist.errors import ConfigError
from ccts_dist.scoring import clusters_of
from ccts_dist.shards.shard_set import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSplits:
    """Which splits the probes are fitted on, their strength is chosen on, and they are scored on."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    def check(self) -> None:
        """Refuse a split with two roles.

        Raises:
            ConfigError: names it.
        """
        named = [("--train", self.train), ("--valid", self.valid), ("--test", self.test)]
        for number, (role, splits) in enumerate(named):
            for other, others in named[number + 1 :]:
                if shared := [split for split in splits if split in others]:
                    raise ConfigError(
                        f"split {shared[0]!r} is in {role} and in {other}: probes must be fitted, chosen and scored "
                        "on different utterances. Leave it out of one."
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRows:
    """Which rows of some splits have labels."""

    num_labels: dict[str, int]
    """By target."""

    groups: tuple[tuple[int, ...], ...]
    """Places of the targets, those together whose labelled rows are the same."""


def target_rows(shard_set: ShardSet, splits: Sequence[str], targets: Sequence[str], role: str) -> TargetRows:
    """Reads the index alone.

    Raises:
        ConfigError: no such split, or a target with fewer than two labels there.
    """
    digests = [hashlib.sha256() for _ in targets]
    counts = [0] * len(targets)
    for shard in shard_set.shards_of(splits):
        labels = shard_set.rows(shard.name).labels
        for place, target in enumerate(targets):
            there = ~np.isnan(labels[target])
            counts[place] += int(there.sum())
            digests[place].update(there.tobytes())
    for target, count in zip(targets, counts, strict=True):
        if count < 2:
            raise ConfigError(
                f"{shard_set.root}: {' and '.join(splits)} ({role}) has {count} labels of {target!r}: must be at least "
                "2. Name another split, or the other targets with --targets."
            )
    groups: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        groups.setdefault(digest.digest(), []).append(place)
    return TargetRows(
        num_labels=dict(zip(targets, counts, strict=True)), groups=tuple(tuple(places) for places in groups.values())
    )


def speakers_by_key(shard_set: ShardSet, splits: Sequence[str]) -> dict[str, int]:
    """For each utterance, the number of its speaker; one of an unknown speaker is a speaker of its own."""
    keys: list[str] = []
    speakers: list[str | None] = []
    for shard in shard_set.shards_of(splits):
        rows = shard_set.rows(shard.name)
        keys += rows.keys
        speakers += rows.speakers
    return dict(zip(keys, clusters_of(speakers), strict=True))
