"""Facts of a shard set that decide a first run file: splits, targets, categories, durations, transcripts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.records import DIMENSIONS, SHARE
from ccts_dist.shards.format.schema import JSON_MEMBER, transcript_of
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.statistics import SplitStatistics, split_statistics

_SHARDS_LOOKED_AT, _ROWS_LOOKED_AT = 4, 50
"""For transcripts: of the training splits, and of each of their shards."""

_LEAST_DEVIATION = 1e-6
"""Least standard deviation of a target's labels on 0..1; below it they are constant, and there is no CCC."""

_ROLES = {"train": r"train", "valid": r"dev|val", "test": r"test|eval"}
"""Beginning of a split's name, in lower case, by what the split is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """Facts of a shard set for a training."""

    corpus: str
    train_splits: tuple[str, ...]
    valid_splits: tuple[str, ...]
    test_splits: tuple[str, ...]
    by_name: bool
    """Splits were distinguished by their names, not by their order."""

    targets: tuple[str, ...]
    """Targets whose labels vary in the training and the validation splits; activation, valence, dominance first."""

    categories: tuple[str, ...]
    """Categories with two or more training utterances, in the order of their names."""

    num_utterances: int
    """Training utterances."""

    hours: float
    """Audio of the training splits."""

    longest_s: float
    """Longest training utterance."""

    has_transcripts: bool
    """Most of the training utterances that were looked at have words."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The targets that are emotion dimensions; activation may be called arousal."""
        return tuple(target for target in self.targets if target in (*DIMENSIONS, "arousal"))


def set_facts(shard_set: ShardSet) -> SetFacts:
    """Facts of a set, from its index and the transcripts of some utterances.

    Raises:
        ConfigError: fewer than two splits, or neither targets nor categories to train on.
        ShardError: the set is damaged.
    """
    splits = {split: split_statistics(shard_set, split) for split in shard_set.manifest.split_names}
    roles, by_name = _roles(shard_set, [split for split, found in splits.items() if _has_labels(found)])
    train = [splits[split] for split in roles["train"]]
    targets = [
        target
        for target in shard_set.manifest.targets
        if not target.endswith(SHARE)
        and all(_varies([splits[split] for split in roles[role]], target) for role in ("train", "valid"))
    ]
    counts: dict[str, int] = {}
    for split in train:
        for name, count in split.categories.items():
            counts[name] = counts.get(name, 0) + count
    categories = sorted(name for name, count in counts.items() if count > 1)
    if not targets and len(categories) < 2:
        raise ConfigError(
            f"{shard_set.root}: no target has labels that vary in training and validation splits, and there are no two "
            "categories. Build the set from a corpus with labels."
        )
    return SetFacts(
        corpus=shard_set.manifest.corpus,
        train_splits=roles["train"],
        valid_splits=roles["valid"],
        test_splits=roles["test"],
        by_name=by_name,
        targets=tuple(sorted(targets, key=lambda name: DIMENSIONS.index(name) if name in DIMENSIONS else 9)),
        categories=tuple(categories) if len(categories) > 1 else (),
        num_utterances=sum(split.num_utterances for split in train),
        hours=sum(split.hours for split in train),
        longest_s=max(split.longest_s for split in train),
        has_transcripts=_has_transcripts(shard_set, roles["train"]),
    )


def _has_labels(split: SplitStatistics) -> bool:
    return split.num_unlabelled < split.num_utterances or bool(split.categories)


def _roles(shard_set: ShardSet, splits: Sequence[str]) -> tuple[Mapping[str, tuple[str, ...]], bool]:
    """Splits to train, validate and test on: by their names, or else the last for tests, the one before to validate."""
    named = {role: tuple(split for split in splits if re.match(words, split.lower())) for role, words in _ROLES.items()}
    if named["train"] and named["valid"]:
        return named, True
    if len(splits) < 2:
        raise ConfigError(
            f"{shard_set.root}: {len(splits)} split(s) with labels, {', '.join(splits) or 'none'}: training and "
            "validation need one each. Build the set with a split for each, such as Train and Development."
        )
    num_tests = int(len(splits) > 2)
    end = len(splits) - num_tests - 1
    return {"train": tuple(splits[:end]), "valid": (splits[end],), "test": tuple(splits[end + 1 :])}, False


def _varies(splits: Sequence[SplitStatistics], target: str) -> bool:
    return any(
        split.labels[target].num_labelled > 1 and split.labels[target].std > _LEAST_DEVIATION for split in splits
    )


def _has_transcripts(shard_set: ShardSet, splits: Sequence[str]) -> bool:
    found = looked_at = 0
    for shard in list(shard_set.shards_of(splits))[:_SHARDS_LOOKED_AT]:
        rows = shard_set.rows(shard.name)
        for row in range(min(len(rows), _ROWS_LOOKED_AT)):
            looked_at += 1
            try:
                found += bool(transcript_of(shard_set.member(rows, row, JSON_MEMBER)).strip())
            except ValueError as error:
                raise ShardError(f"{shard.name}: {rows.keys[row]!r}: {error}. Run shards/check.py.") from error
    return 2 * found > looked_at
