"""Reading a shard set: its manifest, one shard's rows at a time, one member at a time by offset."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccts_dist.errors import CctsError, ConfigError, MissingShardsError, ShardError
from ccts_dist.shards.index import MemberPlaces, RowGroups, ShardRows, table_to_rows
from ccts_dist.shards.schema import (
    INDEX_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    local_folder,
    parse_manifest,
)
from ccts_dist.shards.tars import crc32_of


class ShardSet:
    """An opened shard set. Holds the manifest and the rows of a few shards; can be pickled and used by threads."""

    def __init__(self, root: Path, manifest: Manifest, digest: str) -> None:
        self.root = root
        self.manifest = manifest
        self.digest = digest
        """SHA-256 of the manifest file, which names everything else by digest."""
        self._rows = RowGroups(root / INDEX_NAME, manifest.shards, table_to_rows)

    @property
    def content_digest(self) -> str:
        """Equal for a plain set and the sets merged from it: what the order of training depends on."""
        return self.manifest.source_digest or self.digest

    def shards_of(self, splits: Sequence[str]) -> Sequence[ShardEntry]:
        """The shards of some splits: in the order the splits are named, then the manifest's.

        Raises:
            ConfigError: no such split.
        """
        for split in splits:
            if split not in self.manifest.splits:
                known = ", ".join(repr(name) for name in self.manifest.split_names)
                raise ConfigError(f"{self.root}: no split {split!r} in these shards. Known splits: {known}.")
        of_splits = [self.manifest.shards_of(split) for split in dict.fromkeys(splits)]
        return of_splits[0] if len(of_splits) == 1 else [shard for shards in of_splits for shard in shards]

    def rows(self, shard: str) -> ShardRows:
        """The index of one shard; reads that shard's batch only, and keeps the last ones read.

        Raises:
            ShardError: no such shard, or the index is stale or unreadable.
        """
        return self._rows.get(shard)

    def path(self, shard: str) -> Path:
        """The shard's file."""
        return self.root / shard

    def prefetch(self, shards: Sequence[str]) -> None:
        """Fetch these ahead of need, in this order; nothing to do for a folder."""

    def member(self, rows: ShardRows, row: int, member: str) -> bytes:
        """The payload of one member of one utterance, checked against its CRC-32.

        Raises:
            ShardError: the shard is missing or damaged; names shard and key.
        """
        return read_member(self.path(rows.shard), rows.members[member], row, key=rows.keys[row], member=member)


def open_shard_set(root: str | Path) -> ShardSet:
    """The shard set in a folder; neither shards nor the rows of the index are read.

    Raises:
        MissingShardsError: there is no shard set.
        ShardError: another format version, a damaged manifest, or an index of another size than the manifest's.
        ConfigError: not a folder's name but a ``pipe:`` command or an address.
    """
    shard_set = read_shard_set(root)
    check_index_size(shard_set.root / INDEX_NAME, shard_set.manifest.index_size_bytes, error=ShardError)
    return shard_set


def check_index_size(index: Path, size_bytes: int, *, error: type[CctsError]) -> None:
    """Refuse an index that is missing or cut before anything relies on it; each batch is checked when it is read.

    Raises:
        CctsError: of type ``error``.
    """
    found = f"has {index.stat().st_size} bytes" if index.is_file() else "is missing"
    if found != f"has {size_bytes} bytes":
        raise error(
            f"{index}: {found}, and the manifest says {size_bytes}. "
            "The index is stale or damaged: fetch the set again, or make it again."
        )


def read_shard_set(root: str | Path) -> ShardSet:
    """The shard set in a folder as its manifest tells it, unchecked: for finding damage. Others ``open_shard_set``.

    Raises:
        MissingShardsError: there is no shard set.
        ShardError: another format version, or a damaged manifest.
        ConfigError: not a folder's name but a ``pipe:`` command or an address.
    """
    root = local_folder(root, what="shard set")
    where = root / MANIFEST_NAME
    try:
        data = where.read_bytes()
    except OSError as error:
        raise MissingShardsError(
            f"{root}: no shard set here (no readable {MANIFEST_NAME}). Build one with shards/build.py, "
            "or run the same build again if it was interrupted."
        ) from error
    return ShardSet(root, parse_manifest(data, where=str(where)), hashlib.sha256(data).hexdigest())


def read_member(path: Path, places: MemberPlaces, row: int, *, key: str, member: str) -> bytes:
    """The payload of one member, read by offset and checked against its CRC-32.

    Raises:
        ShardError: the shard is missing or cut, or the bytes are not those the index was made of; names shard and key.
    """
    offset, size = int(places.offset[row]), int(places.size[row])
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, size, offset)
            while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
                data += more  # one call gives 2 GiB at most, and a network file system may give less
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ShardError(
            f"{path.name}: cannot read {member} of {key!r} ({error.strerror}). Run shards/check.py {path.parent}"
        ) from error
    if len(data) != size or crc32_of(data) != int(places.crc32[row]):
        damage = "cut" if len(data) != size else "damaged (its CRC-32 differs)"
        raise ShardError(f"{path.name}: {member} of {key!r} is {damage}. Run shards/check.py {path.parent}")
    return data


def read_utterance_json(path: Path, rows: ShardRows, row: int) -> dict[str, Any]:
    """The ``json`` member of one utterance: transcript, labels, speaker and the rest; see ``schema.utterance_to_json``.

    Raises:
        ShardError: as ``read_member``.
    """
    return json.loads(read_member(path, rows.members[JSON_MEMBER], row, key=rows.keys[row], member=JSON_MEMBER))
