"""The teacher cache: side-car tars with a teacher's outputs, read by key; and what is needed to write one.

``shards/FORMAT.md`` is the normative text. Passing a teacher over a shard set and fitting the condition is
``ccts_dist.teacher``'s work; here is the format.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from ccts_dist.errors import FetchError, ShardError, TeacherError
from ccts_dist.records import Condition, TeacherOutput
from ccts_dist.shards.format.index import Indexed, MemberPlaces, RowGroups, Texts, table_places
from ccts_dist.shards.format.index_validation import form_fault, place_columns_of, places_fault, shard_columns
from ccts_dist.shards.format.schema import (
    AUDIO_MEMBER,
    INDEX_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    TEACHER_MEMBER,
    TeacherFacts,
    unescape_key,
)
from ccts_dist.shards.format.tars import walk_tar
from ccts_dist.shards.format.teacher_cache import (
    check_facts,
    decode_output,
    output_size,
    read_cache_manifest,
    read_condition,
)
from ccts_dist.shards.shard_set import ShardSet, check_index_size, read_member
from ccts_dist.shards.stores.remote import open_store
from ccts_dist.shards.stores.store import FileStore, LocalStore, NamedFile, Stored
from ccts_dist.shards.stores.transfer import StoredFile

_COLUMNS = {"key": pa.string(), **place_columns_of((TEACHER_MEMBER,))}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRows:
    """The index of one cache shard."""

    keys: Sequence[str]
    places: MemberPlaces


class TeacherCache:
    """A teacher's outputs by shard and key, from a side-car or from merged shards. Can be pickled."""

    def __init__(
        self,
        store: FileStore,
        digest: str,
        facts: TeacherFacts,
        condition: Condition,
        shards: Sequence[Indexed],
        index: StoredFile,
        *,
        columns: Mapping[str, pa.DataType] = _COLUMNS,
        merged: bool = False,
    ) -> None:
        """
        Args:
            index: of ``shards``.
            columns: that it must have.
            merged: the shard set's own shards carry the outputs, and whoever reads it fetches them.
        """
        self.store = store
        self._fetches = not merged and not isinstance(store, LocalStore)
        self.root = store.root
        """The folder, or the address."""
        self.digest = digest
        """SHA-256 of the cache's manifest; equal for a cache and the merged shards made with it."""
        self.facts = facts
        self.condition = condition
        self.targets = facts.targets
        self.embedding_size = facts.embedding_size
        self.embedding_mean: Float64[np.ndarray, " hidden"] = np.array(facts.embedding_mean, np.float64)
        self.embedding_std: Float64[np.ndarray, " hidden"] = np.array(facts.embedding_std, np.float64)
        self._output_bytes = output_size(facts.embedding_size + len(facts.targets))
        self._rows = RowGroups(Stored(store, index), shards, partial(_decode_rows, columns, self._output_bytes))

    def read(self, shard: str, row: int, key: str) -> TeacherOutput:
        """Output of the teacher for one utterance, which is row ``row`` of its shard; a cache keeps the shard's order.

        Raises:
            TeacherError: the cache has no such shard or key, or what it has is damaged; names shard and key.
            FetchError: it cannot be fetched.
        """
        data = self.read_bytes(shard, row, key)
        try:
            return decode_output(data, self.embedding_size, len(self.targets))
        except ValueError as error:
            raise self._wrong_output(shard, key, str(error)) from error

    def _wrong_output(self, shard: str, key: str, fault: str) -> TeacherError:
        return TeacherError(
            f"{shard}: {TEACHER_MEMBER} of {key!r} in {self.root} {fault}. Run launch/cache_teacher.py again."
        )

    def read_bytes(self, shard: str, row: int, key: str) -> bytes:
        """The ``teacher.npy`` member of one utterance.

        Raises:
            TeacherError: as ``read``.
        """
        try:
            rows = self._rows.get(shard)
            if row < len(rows.keys) and rows.keys[row] == key:
                return read_member(self._rows.stored(shard), rows.places, row, key=key, member=TEACHER_MEMBER)
        except FetchError:
            raise
        except ShardError as error:
            raise TeacherError(f"{error} Wanted: the teacher's output for {key!r}, from {self.root}.") from error
        raise TeacherError(
            f"{shard}: utterance {key!r} has no teacher output in {self.root}. "
            "Run launch/cache_teacher.py on these shards again."
        )

    def check_outputs(self, shards: Sequence[str]) -> None:
        """Refuse outputs that are of another length or not finite, before anything relies on them.

        A sealed cache may hold such. Of a store only the index is read, which has the lengths; fetching all outputs
        would take as long as an epoch. Damage is not looked for: what is done about it is the run's to decide.

        Raises:
            TeacherError: names shard, key and cache.
            FetchError: the index cannot be fetched.
        """
        for shard in shards:
            try:
                keys = self._rows.get(shard).keys
            except FetchError:
                raise
            except ShardError as error:
                raise TeacherError(f"{error} Wanted: the teacher's outputs, from {self.root}.") from error
            for row, key in enumerate(keys if isinstance(self.store, LocalStore) else ()):
                try:
                    data = self.read_bytes(shard, row, key)
                except TeacherError:
                    continue
                try:
                    decode_output(data, self.embedding_size, len(self.targets))
                except ValueError as error:
                    raise self._wrong_output(shard, key, str(error)) from error

    def prefetch(self, shards: Sequence[str]) -> None:
        """Fetch what it has of these ahead of need, in this order; nothing to do for a folder."""
        files = []
        for shard in shards if self._fetches else ():
            with suppress(ShardError):  # one that it lacks is reported when its outputs are read
                files.append(self._rows.stored(shard).file)
        if self._fetches:
            self.store.prefetch(files)

    def bytes_to_fetch(self, shards: Iterable[str]) -> int:
        """Size of its files for some shards in the cache of fetched files, beside the shard set's; 0 in a folder."""
        return sum(self._rows.stored(shard).file.size_bytes for shard in shards) if self._fetches else 0


def open_teacher_cache(
    root: str | Path, shard_set: ShardSet, *, cache: Path | None = None, cache_bytes: int | None = None
) -> TeacherCache:
    """The teacher cache in a folder or under an address, checked to be of this shard set; its tars are not opened.

    Args:
        cache: folder for what is fetched from an address, and the bytes it may hold; see ``remote.open_store``.

    Raises:
        TeacherError: no cache there, made for other shards, of another format version, or damaged.
        ConfigError: a ``pipe:`` command, or an address that is refused.
        FetchError: a store does not answer.
    """
    store = open_store(root, cache=cache, cache_bytes=cache_bytes)
    manifest, digest = read_cache_manifest(store)
    if manifest.shard_set_digest != shard_set.content_digest:
        raise TeacherError(
            f"{store.words}: the cache was made for shard set {manifest.shard_set_digest[:12]}, and {shard_set.root} "
            f"is {shard_set.content_digest[:12]}. Run launch/cache_teacher.py --shards {shard_set.root} again; "
            "it keeps what still fits."
        )
    check_index_size(store, manifest.index_size_bytes, error=TeacherError)
    condition = read_condition(store, manifest.teacher)
    index = NamedFile(INDEX_NAME, manifest.index_size_bytes, manifest.index_sha256)
    return TeacherCache(store, digest, manifest.teacher, condition, manifest.shards, index)


def open_merged_teacher(shard_set: ShardSet) -> TeacherCache:
    """The teacher's outputs that merged shards carry; equal to those of the cache that was merged.

    Raises:
        TeacherError: the shards carry no teacher, or the condition beside them is missing or another.
    """
    facts = shard_set.manifest.teacher
    if facts is None:
        raise TeacherError(
            f"{shard_set.root}: these shards carry no teacher outputs. Make merged ones with shards/merge.py, "
            "or name a teacher cache."
        )
    store, manifest = shard_set.store, shard_set.manifest
    check_facts(facts, where=f"{store.words}/{MANIFEST_NAME}")
    condition = read_condition(store, facts)
    index = NamedFile(INDEX_NAME, manifest.index_size_bytes, manifest.index_sha256)
    columns = shard_columns(manifest.targets, (AUDIO_MEMBER, JSON_MEMBER, TEACHER_MEMBER))
    shards, digest = manifest.shards, facts.cache_digest
    return TeacherCache(store, digest, facts, condition, shards, index, columns=columns, merged=True)


def read_cached_outputs(
    cache_root: Path, shard: str, *, embedding_size: int, num_targets: int
) -> Iterator[tuple[str, TeacherOutput]]:
    """Keys and outputs of a written cache shard in its order, before there is an index; for statistics over a cache.

    Raises:
        TeacherError: the shard is damaged.
    """
    try:
        with open(cache_root / shard, "rb") as file:
            for member in walk_tar(cache_root / shard):
                file.seek(member.offset)
                key = unescape_key(member.name.removesuffix("." + TEACHER_MEMBER))
                yield key, decode_output(file.read(member.size), embedding_size, num_targets)
    except (ShardError, ValueError, OSError) as error:
        raise TeacherError(
            f"{cache_root / shard}: {error}. Delete it and run launch/cache_teacher.py again."
        ) from error


def _decode_rows(columns: Mapping[str, pa.DataType], output_bytes: int, entry: Any, batch: pa.RecordBatch) -> CacheRows:
    if fault := form_fault(batch, columns):
        raise ValueError(fault)
    rows = CacheRows(keys=Texts(batch["key"]), places=table_places(batch, TEACHER_MEMBER))
    if fault := places_fault(rows.places, entry.size_bytes, TEACHER_MEMBER, rows.keys):
        raise ValueError(fault)
    other = np.flatnonzero(rows.places.size != output_bytes)
    if len(other):
        row = int(other[0])
        raise ValueError(
            f"{TEACHER_MEMBER} of {rows.keys[row]!r} has {rows.places.size[row]} bytes, and the teacher's outputs have "
            f"{output_bytes}"
        )
    return rows
