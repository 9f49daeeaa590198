"""The validation of a builder's input: utterances by split, and what is omitted before any audio is opened."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.records import Rejected, Utterance
from ccts_dist.shards.format.schema import escape_key, shard_name, utterance_to_json

MAX_SPLIT_BYTES = 255 - len(f".{shard_name('', 0)}.arrow.partial")
"""Most bytes of a split's escaped name. File systems take names of 255 bytes, and a shard's rows have the longest
while built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """The builder's input after its first look."""

    splits: dict[str, tuple[Utterance, ...]]
    """In order of first appearance; within a split in the order they came."""

    rejected: tuple[Rejected, ...]
    """By the corpus reader and by this first look, in the order they came."""

    @property
    def num_given(self) -> int:
        """All that came, rejected or not."""
        return len(self.rejected) + sum(len(utterances) for utterances in self.splits.values())


def sort_intake(given: Iterable[Utterance | Rejected], *, targets: Sequence[str], root: Path | None) -> Intake:
    """Group utterances by split; reject doubles, names that cannot be stored, and labels off the scale."""
    splits: dict[str, list[Utterance]] = {}
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for one in given:
        if isinstance(one, Rejected):
            rejected.append(one)
            continue
        reason = "the key comes twice" if one.key in seen else _fault(one, targets, root)
        if reason:
            rejected.append(Rejected(key=one.key, reason=reason, source=source_of(one, root)))
            continue
        seen.add(one.key)
        splits.setdefault(one.split, []).append(one)
    return Intake(splits={name: tuple(split) for name, split in splits.items()}, rejected=tuple(rejected))


def same_files(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two split names whose shards are one file where a file system ignores case; None if there are none.

    Only ASCII letters count: every other character is escaped in a shard's name. Keys and targets never become files.
    """
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(escape_key(name).lower(), name)
        if other != name:
            return other, name
    return None


def source_of(utterance: Utterance, root: Path | None) -> str:
    """The audio file as shards name it: relative to the corpus, so that a corpus that moves gives equal shards.

    A part of a file has its beginning and end behind it, as Media Fragments write them: ``a.wav#t=1.5,4``.

    Args:
        root: absolute; None, or audio outside of it, leaves the file name alone.
    """
    audio = utterance.audio.absolute()
    named = audio.relative_to(root).as_posix() if root is not None and audio.is_relative_to(root) else audio.name
    return named if utterance.segment_s is None else f"{named}#t={utterance.segment_s[0]!r},{utterance.segment_s[1]!r}"


def rejected_line(rejected: Rejected) -> str:
    """One line of ``rejected.jsonl``."""
    # A key that is no valid Unicode may be the very reason; ASCII escapes write it all the same.
    return json.dumps({"key": rejected.key, "reason": rejected.reason, "source": rejected.source}, sort_keys=True)


def _fault(utterance: Utterance, targets: Sequence[str], root: Path | None) -> str:
    if not utterance.key or any(unicodedata.category(character) == "Cc" for character in utterance.key):
        return "the key is empty or has a control character"
    for name, values in (("label", utterance.labels), ("variance of label", utterance.label_variance)):
        for target in targets:
            value = values.get(target, 0.0)
            if not 0 <= value <= 1:
                return f"{name} {target!r} is {value}, off the scale 0..1"
    try:
        split_bytes = len(escape_key(utterance.split))
        if split_bytes > MAX_SPLIT_BYTES:
            room = f"which has room for {MAX_SPLIT_BYTES}; shorten it"
            return f"the split's name takes {split_bytes} bytes in a file name, {room}"
        utterance_to_json(utterance, targets=targets, num_samples=0, source=source_of(utterance, root))
    except UnicodeEncodeError:
        return "a text is not valid Unicode"
    return ""
