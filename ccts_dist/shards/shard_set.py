"""Reading a shard set: its manifest, one shard's rows at a time, one member at a time by offset."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from ccts_dist.errors import CctsError, ConfigError, FetchError, MissingShardsError, ShardError
from ccts_dist.shards.format.index import MemberPlaces, RowGroups, ShardRows
from ccts_dist.shards.format.index_validation import shard_columns, sound_rows
from ccts_dist.shards.format.schema import (
    AUDIO_MEMBER,
    INDEX_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    check_totals,
    parse_manifest,
)
from ccts_dist.shards.format.sealed_json import is_sealed
from ccts_dist.shards.format.tars import crc32_of
from ccts_dist.shards.stores.remote import open_store
from ccts_dist.shards.stores.store import FileStore, LocalStore, NamedFile, Stored, read_at, reason_of, stored_at


class ShardSet:
    """An opened shard set. Holds the manifest and the rows of a few shards; can be pickled and used by threads."""

    def __init__(self, store: FileStore, manifest: Manifest, digest: str) -> None:
        self.store = store
        self.root = store.root
        """The folder, or the address."""
        self.manifest = manifest
        self.digest = digest
        """SHA-256 of the manifest file, which names everything else by digest."""
        index = NamedFile(INDEX_NAME, manifest.index_size_bytes, manifest.index_sha256)
        columns = shard_columns(manifest.targets, tuple(dict.fromkeys((AUDIO_MEMBER, JSON_MEMBER, *manifest.members))))
        self._rows = RowGroups(Stored(store, index), manifest.shards, partial(sound_rows, columns))

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
            ShardError: no such shard, the index is stale or unreadable, or its rows are not what they must be.
        """
        return self._rows.get(shard)

    def path(self, shard: str) -> Path:
        """The shard's file on this machine; one of a store is fetched, and may go again at any time.

        Raises:
            ShardError: no such shard, or a store has another one or none under its name.
            FetchError: it cannot be fetched.
        """
        return self.store.path(self._rows.stored(shard).file)

    def prefetch(self, shards: Sequence[str]) -> None:
        """Fetch these ahead of need, in this order; nothing to do for a folder."""
        if not isinstance(self.store, LocalStore):
            self.store.prefetch([self._rows.stored(shard).file for shard in shards])

    def bytes_to_fetch(self, shards: Iterable[str]) -> int:
        """Size of some shards in the cache of fetched files; 0 when they are in a folder."""
        if isinstance(self.store, LocalStore):
            return 0
        return sum(self._rows.stored(shard).file.size_bytes for shard in shards)

    def member(self, rows: ShardRows, row: int, member: str) -> bytes:
        """The payload of one member of one utterance, checked against its CRC-32.

        Raises:
            ShardError: the shard is missing or damaged; names shard and key.
            FetchError: it cannot be fetched.
        """
        places = rows.members[member]
        return read_member(self._rows.stored(rows.shard), places, row, key=rows.keys[row], member=member)


def open_shard_set(root: str | Path, *, cache: Path | None = None, cache_bytes: int | None = None) -> ShardSet:
    """The shard set in a folder or under an address; neither shards nor the rows of the index are read.

    Args:
        cache: folder for what is fetched from an address, and the bytes it may hold; see ``remote.open_store``.

    Raises:
        MissingShardsError: there is no shard set.
        ShardError: another format version, a damaged manifest, one whose shards are not those that its splits count,
            or whose scale does not rise, or an index of another size than the manifest's.
        ConfigError: a ``pipe:`` command, or an address that is refused.
        FetchError: a store does not answer.
    """
    shard_set = read_shard_set(open_store(root, cache=cache, cache_bytes=cache_bytes))
    where = f"{shard_set.store.words}/{MANIFEST_NAME}"
    check_totals(shard_set.manifest, where=where)
    scale = shard_set.manifest.scale
    if len(scale) != 2 or not scale[0] < scale[1]:
        raise ShardError(f"{where}: states the scale {list(scale)}, which must rise. Do not use this shard set.")
    check_index_size(shard_set.store, shard_set.manifest.index_size_bytes, error=ShardError)
    return shard_set


def check_index_size(store: FileStore, size_bytes: int, *, error: type[CctsError]) -> None:
    """Refuse an index that is missing or cut before anything relies on it; each batch is checked when it is read.

    One that is fetched is checked when it comes.

    Raises:
        CctsError: of type ``error``.
    """
    if not isinstance(store, LocalStore):
        return
    index = store.root / INDEX_NAME
    found = f"has {index.stat().st_size} bytes" if index.is_file() else "is missing"
    if found != f"has {size_bytes} bytes":
        raise error(
            f"{index}: {found}, and the manifest states {size_bytes}. "
            "The index is stale or damaged: fetch the set again, or make it again."
        )


def read_shard_set(root: str | Path | FileStore) -> ShardSet:
    """The shard set as its manifest reports it, unchecked: for finding damage. Others ``open_shard_set``.

    Raises:
        MissingShardsError: there is no shard set.
        ShardError: another format version, or a damaged manifest.
        ConfigError: a ``pipe:`` command, or an address that is refused.
        FetchError: a store does not answer.
    """
    store = open_store(root) if isinstance(root, str | Path) else root
    try:
        data = store.read_bytes(MANIFEST_NAME, is_sealed)
    except MissingShardsError as error:
        reason = "" if isinstance(store, LocalStore) else f": {error}"
        raise MissingShardsError(
            f"{store.words}: no shard set here (no readable {MANIFEST_NAME}{reason}). Build one with shards/build.py, "
            "or run the same build again if it was interrupted."
        ) from error
    manifest = parse_manifest(data, where=f"{store.words}/{MANIFEST_NAME}")
    return ShardSet(store, manifest, hashlib.sha256(data).hexdigest())


def read_member(file: Path | Stored, places: MemberPlaces, row: int, *, key: str, member: str) -> bytes:
    """The payload of one member, read by offset and checked against its CRC-32.

    A fetched shard that turns out to be damaged is fetched once more.

    Raises:
        ShardError: the shard is missing or cut, or the bytes are not those the index was made of; names shard and key.
        FetchError: it cannot be fetched.
    """
    if isinstance(file, Path):
        file = stored_at(file)
    offset, size = int(places.offset[row]), int(places.size[row])
    shard, folder = file.file.name, file.store.words
    try:
        while True:
            with file.opened() as descriptor:
                data = read_at(descriptor, size, offset)
                if len(data) == size and crc32_of(data) == int(places.crc32[row]):
                    return data
                if not file.discard(descriptor):
                    break
    except FetchError:
        raise
    except (ShardError, OSError) as error:
        raise ShardError(
            f"{shard}: cannot read {member} of {key!r} ({reason_of(error)}). Run shards/check.py {folder}"
        ) from error
    damage = "cut" if len(data) != size else "damaged (its CRC-32 differs)"
    raise ShardError(f"{shard}: {member} of {key!r} is {damage}. Run shards/check.py {folder}")
