"""Damage in one tar: what it holds against what the index states it holds."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from ccts_dist.errors import ShardError
from ccts_dist.shards.format.index import MemberPlaces
from ccts_dist.shards.format.schema import unescape_key
from ccts_dist.shards.format.tars import BrokenTarError, TarMember, crc32_of, short, walk_open_tar

_MOST_FOREIGN = 100
"""Foreign members that are named one by one: a tar may be somebody else's altogether."""

_ZERO_BLOCK = bytes(512)
"""A block of zeros: disks and file systems lose whole blocks. No encoded audio, no text holds so many zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One piece of damage."""

    shard: str
    """File that is at fault."""

    key: str = ""
    """Utterance, as the corpus spells it; empty when the damage is not one utterance's."""

    what: str
    leftover: bool = False
    """Something that an interrupted build has left: in nobody's way, and no damage."""

    def __str__(self) -> str:
        return " ".join(_printable(words) for words in (self.shard, self.key or "-", self.what))


@dataclass(frozen=True, slots=True, kw_only=True)
class TarRows:
    """The index's record of a tar."""

    shard: str
    keys: Sequence[str]
    """Keys in the corpus's spelling."""

    places: Mapping[str, MemberPlaces]
    """By extension, in the order in which the members of an utterance must stand."""


@dataclass(slots=True)
class _Walked:
    """The result of a walk over a tar."""

    found: dict[tuple[str, str], TarMember] = field(default_factory=dict)
    """By key and extension, in the tar's order: members that belong in such a tar."""

    faults: list[Finding] = field(default_factory=list)
    """Members that do not."""

    broken: BrokenTarError | None = None
    """Place where the walk had to stop; what comes after was not seen."""


def check_tar(
    file: BinaryIO, rows: TarRows, inspect: Callable[[int, str, bytes], Iterator[Finding]]
) -> Iterator[Finding]:
    """A tar against its index rows: foreign, missing, doubled, moved and damaged members, and those in wrong order.

    Nothing is unpacked, and one member at a time is in memory.

    Args:
        inspect: looks at the payload of a sound member, given its row and extension.
    """
    walked = _walk(file, rows.shard, tuple(rows.places))
    yield from walked.faults
    yield from _broken_in_words(walked.broken, rows)
    if walked.broken is not None and walked.broken.no_tar:
        return
    yield from _member_order(walked, rows)
    yield from _utterance_order(walked, rows)
    listed = {(key, member) for key in rows.keys for member in rows.places}
    for key, member in walked.found:
        if (key, member) not in listed:
            yield Finding(shard=rows.shard, key=key, what=f"{member} is not in the index")
    moved = []
    for row, key in enumerate(rows.keys):
        for member, where in rows.places.items():
            seen, offset, size = walked.found.get((key, member)), int(where.offset[row]), int(where.size[row])
            if seen is None and walked.broken is None:
                yield Finding(shard=rows.shard, key=key, what=f"{member} is missing")
            elif seen is not None and (seen.offset, seen.size) != (offset, size):
                moved.append((key, member))
            elif (data := _payload(file, offset, size)) is None:
                yield Finding(shard=rows.shard, key=key, what=f"{member} is cut")
            elif crc32_of(data) != int(where.crc32[row]):
                yield Finding(shard=rows.shard, key=key, what=f"{member} is damaged ({_damage(data, offset)})")
            else:
                yield from inspect(row, member, data)
    if moved:
        key, member = moved[0]
        others = f", nor are {len(moved) - 1} other members" if len(moved) > 1 else ""
        yield Finding(shard=rows.shard, key=key, what=f"{member} is not where the index states{others}: it is stale")


def check_without_rows(file: BinaryIO, shard: str, members: Sequence[str]) -> Iterator[Finding]:
    """Faults of a tar by itself; for one whose index rows cannot be had."""
    nothing = np.zeros(0, np.int64)
    nowhere = MemberPlaces(offset=nothing, size=nothing, crc32=nothing.astype(np.uint32))
    rows = TarRows(shard=shard, keys=(), places=dict.fromkeys(members, nowhere))
    walked = _walk(file, shard, members)
    yield from walked.faults
    yield from _broken_in_words(walked.broken, rows)
    yield from _member_order(walked, rows)
    for key in dict.fromkeys(key for key, _ in walked.found):
        for member in members:
            if (key, member) not in walked.found and walked.broken is None:
                yield Finding(shard=shard, key=key, what=f"{member} is missing")


def without_name(error: Exception, name: str) -> str:
    """An error's words without the file name that a finding shows anyway."""
    return str(error).removeprefix(f"{name}: ")


def _walk(file: BinaryIO, shard: str, members: Sequence[str]) -> _Walked:
    walked, num_foreign = _Walked(), 0
    try:
        for member in walk_open_tar(file, shard):
            place = _place(member, members)
            if isinstance(place, str):
                num_foreign += 1
                if num_foreign <= _MOST_FOREIGN:
                    what = f"member {short(member.name)} {place}: never opened"
                    walked.faults.append(Finding(shard=shard, what=what))
            elif place in walked.found:
                walked.faults.append(Finding(shard=shard, key=place[0], what=f"{place[1]} comes twice"))
            else:
                walked.found[place] = member
    except BrokenTarError as error:
        walked.broken = error
    if num_foreign > _MOST_FOREIGN:
        what = f"{num_foreign - _MOST_FOREIGN} more foreign members: never opened"
        walked.faults.append(Finding(shard=shard, what=what))
    return walked


def _place(member: TarMember, members: Sequence[str]) -> tuple[str, str] | str:
    """Key and extension of a member, or what is wrong with it."""
    if member.kind != "file":
        return f"is a {member.kind}"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "leads out of its folder"
    escaped, _, extension = member.name.partition(".")
    if extension not in members:
        return "is foreign"
    try:
        return unescape_key(escaped), extension
    except ShardError:
        return "has no escaped key"


def _broken_in_words(broken: BrokenTarError | None, rows: TarRows) -> Iterator[Finding]:
    """The place where a walk had to stop, and whose header stands there if the index knows."""
    if broken is None:
        return
    if broken.no_tar:
        yield Finding(shard=rows.shard, what=broken.what)
        return
    # A member's header begins where the one before it ends, padded to whole blocks.
    end = 0
    for row, key in enumerate(rows.keys):
        for member, where in rows.places.items():
            if end <= broken.offset < int(where.offset[row]):
                yield Finding(shard=rows.shard, key=key, what=f"{broken.what} (at its {member})")
                return
            end = -(-(int(where.offset[row]) + int(where.size[row])) // 512) * 512
    yield Finding(shard=rows.shard, what=broken.what)


def _member_order(walked: _Walked, rows: TarRows) -> Iterator[Finding]:
    """An utterance's members must stand together, in the manifest's order: readers take them one after the other."""
    groups: list[tuple[str, list[str]]] = []
    for key, member in walked.found:
        if not groups or groups[-1][0] != key:
            groups.append((key, []))
        groups[-1][1].append(member)
    met: set[str] = set()
    for key, stand in groups:
        wanted = [member for member in rows.places if member in stand]
        if key in met:
            yield Finding(shard=rows.shard, key=key, what="its members do not stand one after the other")
        elif stand != wanted:
            what = f"its members stand as {', '.join(stand)}, and must stand as {', '.join(wanted)}"
            yield Finding(shard=rows.shard, key=key, what=what)
        met.add(key)


def _utterance_order(walked: _Walked, rows: TarRows) -> Iterator[Finding]:
    stand = dict.fromkeys(key for key, _ in walked.found)
    wanted = dict.fromkeys(key for key in rows.keys if key in stand)
    for found, due in zip((key for key in stand if key in wanted), wanted, strict=True):
        if found != due:
            what = f"stands where the index has {short(due)}: the utterances are in another order"
            yield Finding(shard=rows.shard, key=found, what=what)
            return


def _payload(file: BinaryIO, offset: int, size: int) -> bytes | None:
    """The bytes at a place that an index names; None where the file has not got them."""
    if not 0 <= offset <= offset + size <= os.fstat(file.fileno()).st_size or size < 0:
        return None
    file.seek(offset)
    data = file.read(size)
    return data if len(data) == size else None


def _damage(data: bytes, offset: int) -> str:
    at = data.find(_ZERO_BLOCK)
    return "its CRC-32 differs" if at < 0 else f"its CRC-32 differs; zeros at byte {offset + at}"


def _printable(words: str) -> str:
    """Words that may come out of a hostile file, on one line and without commands to a terminal."""
    if words.isprintable():
        return words
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in words
    )
