"""Damage in one tar: what it holds against what the index says it holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.errors import ShardError
from ccts_dist.shards.durable import file_sha256
from ccts_dist.shards.index import MemberPlaces
from ccts_dist.shards.read import read_member
from ccts_dist.shards.schema import unescape_key
from ccts_dist.shards.tars import TarMember, walk_tar


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One piece of damage."""

    shard: str
    """File that is at fault."""

    key: str = ""
    """Utterance, as the corpus spells it; empty when the damage is not one utterance's."""

    what: str

    def __str__(self) -> str:
        return f"{self.shard} {self.key or '-'} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walked:
    """What a walk over a tar has shown."""

    found: Mapping[tuple[str, str], TarMember]
    """By key and extension: members that belong in such a tar."""

    foreign: tuple[Finding, ...]
    broken: Finding | None
    """Where the walk had to stop; what comes after was not seen."""


def check_file(path: Path, size_bytes: int, sha256: str) -> list[Finding]:
    """A tar's size and digest against the manifest."""
    if not path.is_file():
        return [Finding(shard=path.name, what="is missing")]
    size = path.stat().st_size
    if size != size_bytes:
        return [Finding(shard=path.name, what=f"has {size} bytes, and the manifest says {size_bytes}")]
    if file_sha256(path) != sha256:
        return [Finding(shard=path.name, what="differs from the manifest's SHA-256")]
    return []


def check_foreign(path: Path, members: Sequence[str]) -> list[Finding]:
    """Members that have no place in such a tar, and breaks; for a tar whose index cannot be read."""
    walked = _walk(path, members)
    return [*walked.foreign, *([walked.broken] if walked.broken else [])]


def check_members(
    path: Path, keys: Sequence[str], places: Mapping[str, MemberPlaces]
) -> tuple[list[Finding], dict[tuple[int, str], bytes]]:
    """A tar against its index rows: foreign, missing, doubled, moved and damaged members.

    Returns:
        The findings, and the payload of every sound member by row and extension.
    """
    walked = _walk(path, tuple(places))
    findings = [*walked.foreign, *([walked.broken] if walked.broken else [])]
    unlisted = set(walked.found) - {(key, member) for key in keys for member in places}
    findings += [
        Finding(shard=path.name, key=key, what=f"{member} is not in the index") for key, member in sorted(unlisted)
    ]
    payloads, moved = {}, []
    for row, key in enumerate(keys):
        for member, where in places.items():
            seen = walked.found.get((key, member))
            if seen is None and walked.broken is None:
                findings.append(Finding(shard=path.name, key=key, what=f"{member} is missing"))
            elif seen is not None and (seen.offset, seen.size) != (int(where.offset[row]), int(where.size[row])):
                moved.append((key, member))
            else:
                try:
                    payloads[row, member] = read_member(path, where, row, key=key, member=member)
                except ShardError as error:
                    findings.append(Finding(shard=path.name, key=key, what=_damage(error, path, key)))
    if moved:
        key, member = moved[0]
        what = f"{member} is not where the index says, nor are {len(moved) - 1} other members: the index is stale"
        findings.append(Finding(shard=path.name, key=key, what=what))
    return findings, payloads


def without_name(error: Exception, name: str) -> str:
    """An error's words without the file name that a finding shows anyway."""
    return str(error).removeprefix(f"{name}: ")


def _damage(error: ShardError, path: Path, key: str) -> str:
    words = without_name(error, path.name).partition(" Run shards/check.py")[0]
    return words.replace(f" of {key!r}", "", 1).rstrip(".")


def _walk(path: Path, members: Sequence[str]) -> _Walked:
    found: dict[tuple[str, str], TarMember] = {}
    foreign: list[Finding] = []
    broken = None
    try:
        for member in walk_tar(path):
            place = _place(member, members)
            if isinstance(place, str):
                foreign.append(Finding(shard=path.name, what=f"member {member.name!r} {place}: never opened"))
            elif place in found:
                foreign.append(Finding(shard=path.name, key=place[0], what=f"{place[1]} comes twice"))
            else:
                found[place] = member
    except ShardError as error:
        broken = Finding(shard=path.name, what=without_name(error, path.name))
    return _Walked(found=found, foreign=tuple(foreign), broken=broken)


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


def payload_rows(payloads: Mapping[tuple[int, str], bytes], member: str) -> Iterator[tuple[int, bytes]]:
    """Row and payload of one kind of member, in the order of the rows."""
    return ((row, data) for (row, name), data in payloads.items() if name == member)
