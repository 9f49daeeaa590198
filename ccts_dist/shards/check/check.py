"""Finding damage: a shard set, and a teacher cache made for it, against what their manifests and indexes state.

Nothing is unpacked and no link followed: tars are walked header by header, members read by offset.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ccts_dist.errors import ConfigError, MissingShardsError, ShardError, TeacherError
from ccts_dist.shards.check.files import beside, open_stored, read_manifest, whole_fault
from ccts_dist.shards.check.findings import Finding, TarRows, check_tar, check_without_rows, without_name
from ccts_dist.shards.check.index import (
    IndexFile,
    known_categories,
    place_findings,
    value_findings,
)
from ccts_dist.shards.check.manifests import (
    cache_manifest_findings,
    condition_findings,
    manifest_findings,
    rejected_findings,
)
from ccts_dist.shards.check.members import audio_faults, json_faults, teacher_faults
from ccts_dist.shards.format.index import ShardRows, Texts, table_places, table_to_rows
from ccts_dist.shards.format.index_validation import place_columns_of, shard_columns
from ccts_dist.shards.format.schema import (
    AUDIO_MEMBER,
    INDEX_NAME,
    JSON_MEMBER,
    MANIFEST_NAME,
    TEACHER_MEMBER,
    Manifest,
    ShardEntry,
    TeacherFacts,
    parse_manifest,
)
from ccts_dist.shards.format.teacher_cache import CacheManifest, CacheShard, parse_cache_manifest
from ccts_dist.shards.stores.remote import open_store
from ccts_dist.shards.stores.store import FileStore, LocalStore, NamedFile

_MOST_DOUBLES = 100
"""Keys that are named one by one when they come twice in a set."""

AnyManifest = TypeVar("AnyManifest", Manifest, CacheManifest)
AnyEntry = TypeVar("AnyEntry", ShardEntry, CacheShard)


@dataclass(slots=True, kw_only=True)
class _Opened:
    """A shard set, or a teacher cache, as far as it could be opened."""

    store: FileStore
    digest: str
    """SHA-256 of the manifest."""

    index: IndexFile | None = None
    index_differs: bool = False
    findings: list[Finding] = field(default_factory=list)


@dataclass(slots=True)
class _Checked:
    """Findings of one shard."""

    findings: list[Finding] = field(default_factory=list)
    differs: bool = False
    """True if as a whole it is not what the manifest names."""

    key_hashes: Int64[np.ndarray, " rows"] = field(default_factory=lambda: np.zeros(0, np.int64))
    categories: set[str] | None = None
    """None when the index could not be read."""


def check_shard_set(
    root: str | Path,
    teacher: str | Path | None = None,
    *,
    fast: bool = False,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Finding]:
    """Everything that is wrong with a shard set, and with a teacher cache made for it; empty when both are sound.

    Args:
        root: folder or address of the shard set. Shards of a store are fetched, into the cache of fetched files.
        teacher: of the teacher cache; None checks the shards alone.
        fast: look at manifests, indexes and small files, and at no more than the size of the tars.
        num_threads: that read; None for as many as this process may use cores.
        progress: called with the number of bytes of tars dealt with since the last call, and with that of all.

    Raises:
        MissingShardsError: there is no shard set to check.
        TeacherError: there is no teacher cache to check.
        ConfigError: neither a folder's name nor an address that can be read, or fewer threads than one.
        FetchError: a store does not answer.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"{num_threads} threads cannot check anything. Give --threads 1 or more, or leave it out.")
    store, cache = open_store(root), None if teacher is None else open_store(teacher)
    data, cache_data = _set_manifest(store), None if cache is None else _cache_manifest(cache)
    if isinstance(data, Finding):
        return [data]
    manifest, digest = data
    tars = list(manifest.shards)
    total = sum(max(0, shard.size_bytes) for shard in tars)
    if isinstance(cache_data, tuple):
        total += sum(max(0, shard.size_bytes) for shard in cache_data[0].shards)
    check = _Check(
        fast=fast,
        num_threads=num_threads or len(os.sched_getaffinity(0)),
        advance=lambda count: progress(count, total) if progress is not None else None,
    )
    with ExitStack() as opened:
        source = _Opened(store=store, digest=digest)
        findings = check.shard_set(opened, source, manifest)
        if isinstance(cache_data, Finding):
            findings.append(cache_data)
        elif cache is not None and cache_data is not None:
            own = _Opened(store=cache, digest=cache_data[1])
            findings += check.teacher_cache(opened, own, cache_data[0], source, manifest)
        return findings


class _Check:
    """Settings of a check, and its way through a set and a cache."""

    def __init__(self, *, fast: bool, num_threads: int, advance: Callable[[int], object]) -> None:
        self._fast, self._num_threads, self._advance = fast, num_threads, advance

    def shard_set(self, opened: ExitStack, own: _Opened, manifest: Manifest) -> list[Finding]:
        """All of a shard set."""
        own.findings += [*manifest_findings(manifest), *rejected_findings(own.store, manifest)]
        if manifest.teacher is not None:
            own.findings += condition_findings(own.store, manifest.teacher, tuple(manifest.splits))
        _open_index(opened, own, manifest, shard_columns(manifest.targets, manifest.members))
        checked = self._run(own.store, manifest.shards, partial(self._shard, own, manifest))
        own.findings += [
            *_categories(manifest, checked),
            *_doubles(own.index, manifest.shards, checked),
            *beside(own.store, {shard.name for shard in manifest.shards}),
        ]
        return [*_another(own, checked), *own.findings, *(one for shard in checked for one in shard.findings)]

    def teacher_cache(
        self, opened: ExitStack, own: _Opened, manifest: CacheManifest, source: _Opened, of: Manifest
    ) -> list[Finding]:
        """All of a cache of the shard set ``source``, whose manifest is ``of``."""
        own.findings += cache_manifest_findings(manifest, of, of.source_digest or source.digest)
        cached = {shard.name for shard in manifest.shards}
        splits = dict.fromkeys(shard.split for shard in of.shards if shard.name in cached)
        own.findings += condition_findings(own.store, manifest.teacher, tuple(splits))
        _open_index(opened, own, manifest, {"key": pa.string(), **place_columns_of((TEACHER_MEMBER,))})
        sources = {shard.name: shard for shard in of.shards}

        def one(entry: CacheShard) -> _Checked:
            shard = sources.get(entry.name)
            foreign = shard is None or (shard.sha256 != entry.source_sha256 and not of.source_digest)
            keys = None if shard is None else _keys(source.index, shard.name)
            return self._cache_shard(own, manifest.teacher, entry, keys, foreign=foreign)

        checked = self._run(own.store, manifest.shards, one)
        own.findings += beside(own.store, cached)
        return [*_another(own, checked), *own.findings, *(one for shard in checked for one in shard.findings)]

    def _run(
        self, store: FileStore, shards: Sequence[AnyEntry], check: Callable[[AnyEntry], _Checked]
    ) -> list[_Checked]:
        """Check all shards, several at a time; in the manifest's order."""
        done = []
        if not self._fast:
            store.prefetch(shards)
        with ThreadPoolExecutor(self._num_threads) as pool:
            try:
                for shard, checked in zip(shards, pool.map(check, shards), strict=True):
                    done.append(checked)
                    self._advance(max(0, shard.size_bytes))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                store.close()
        return done

    def _shard(self, own: _Opened, manifest: Manifest, entry: ShardEntry) -> _Checked:
        checked = _Checked()
        batch = _batch(own.index, entry.name, checked)
        if batch is None:
            self._tar(own.store, entry, checked, manifest.members)
            return checked
        rows = table_to_rows(entry.name, batch)
        places = {member: rows.members[member] for member in manifest.members}
        tar_rows = TarRows(shard=entry.name, keys=tuple(rows.keys), places=places)
        checked.findings += [*place_findings(tar_rows, entry.size_bytes), *value_findings(rows, entry.num_samples)]
        self._tar(own.store, entry, checked, tar_rows, partial(_utterance_findings, rows, entry, manifest))
        checked.key_hashes = np.fromiter(map(hash, tar_rows.keys), np.int64, len(rows))
        checked.categories = known_categories(batch)
        return checked

    def _cache_shard(
        self, own: _Opened, facts: TeacherFacts, entry: CacheShard, keys: Sequence[str] | None, *, foreign: bool
    ) -> _Checked:
        checked = _Checked()
        if foreign:
            checked.findings.append(Finding(shard=entry.name, what="of the cache: was made from another shard"))
        batch = _batch(own.index, entry.name, checked)
        if batch is None:
            self._tar(own.store, entry, checked, (TEACHER_MEMBER,))
            return checked
        places = {TEACHER_MEMBER: table_places(batch, TEACHER_MEMBER)}
        rows = TarRows(shard=entry.name, keys=tuple(Texts[str](batch["key"])), places=places)
        if keys is not None and rows.keys != keys:
            what = "of the cache: its keys are not those of the shard"
            checked.findings.append(Finding(shard=entry.name, what=what))
        checked.findings += place_findings(rows, entry.size_bytes)
        self._tar(own.store, entry, checked, rows, partial(_output_findings, rows, facts))
        return checked

    def _tar(
        self,
        store: FileStore,
        entry: ShardEntry | CacheShard,
        checked: _Checked,
        rows: TarRows | Sequence[str],
        inspect: Callable[[int, str, bytes], Iterator[Finding]] | None = None,
    ) -> None:
        """A tar as a whole and from within; ``rows`` are its members' extensions where there are no index rows."""
        if self._fast and not isinstance(store, LocalStore):
            return  # it would have to be fetched
        with ExitStack() as opened:
            file = open_stored(opened, store, entry)
            if isinstance(file, Finding):
                checked.findings.append(file)
                checked.differs = True
                return
            try:
                outer, inner = whole_fault(file, entry, size_only=self._fast), []
                if not self._fast:
                    inner = [*_look_within(file, entry.name, rows, inspect)]
            except OSError as error:
                outer, inner = f"cannot be read ({error.strerror})", []
            checked.differs = bool(outer)
            # A member that is damaged shows more than the digest of all.
            checked.findings += inner or ([Finding(shard=entry.name, what=outer)] if outer else [])


def _set_manifest(store: FileStore) -> tuple[Manifest, str] | Finding:
    try:
        data = read_manifest(store)
    except MissingShardsError as error:
        raise MissingShardsError(
            f"{store.words}: no shard set here (no readable {MANIFEST_NAME}). Build one with shards/build.py, "
            "or run the same build again if it was interrupted."
        ) from error
    if isinstance(data, Finding):
        return data
    try:
        return parse_manifest(data, where=MANIFEST_NAME), hashlib.sha256(data).hexdigest()
    except ShardError as error:
        return Finding(shard=MANIFEST_NAME, what=without_name(error, MANIFEST_NAME))


def _cache_manifest(store: FileStore) -> tuple[CacheManifest, str] | Finding:
    try:
        data = read_manifest(store)
    except MissingShardsError as error:
        raise TeacherError(
            f"{store.words}: no teacher cache here (no readable {MANIFEST_NAME}). Make one with "
            "launch/cache_teacher.py, or run it again if it was interrupted."
        ) from error
    if isinstance(data, Finding):
        return data
    try:
        return parse_cache_manifest(data, where=MANIFEST_NAME), hashlib.sha256(data).hexdigest()
    except TeacherError as error:
        return Finding(shard=MANIFEST_NAME, what=f"of the cache: {without_name(error, MANIFEST_NAME)}")


def _open_index(
    opened: ExitStack, own: _Opened, manifest: Manifest | CacheManifest, columns: dict[str, pa.DataType]
) -> None:
    """The index as a whole, and its rows as far as they can be had."""
    entry = NamedFile(INDEX_NAME, manifest.index_size_bytes, manifest.index_sha256)
    file = open_stored(opened, own.store, entry)
    own.index_differs = True
    if isinstance(file, Finding):
        own.findings.append(file)
        return
    try:
        fault = whole_fault(file, entry)
        own.index_differs = bool(fault)
        if fault:
            own.findings.append(Finding(shard=INDEX_NAME, what=f"is stale or damaged: {fault}"))
        index = IndexFile(file, manifest.shards, columns)
        own.findings += index.findings()
        own.index = index
    except OSError as error:
        own.findings.append(Finding(shard=INDEX_NAME, what=f"cannot be read ({error.strerror})"))


def _batch(index: IndexFile | None, shard: str, checked: _Checked) -> pa.RecordBatch | None:
    try:
        return None if index is None else index.batch(shard)
    except ShardError as error:
        if str(error):
            checked.findings.append(Finding(shard=shard, what=str(error)))
        return None


def _keys(index: IndexFile | None, shard: str) -> tuple[str, ...] | None:
    batch = _batch(index, shard, _Checked())
    return None if batch is None else tuple(Texts[str](batch["key"]))


def _look_within(
    file: BinaryIO,
    shard: str,
    rows: TarRows | Sequence[str],
    inspect: Callable[[int, str, bytes], Iterator[Finding]] | None,
) -> Iterator[Finding]:
    if isinstance(rows, TarRows):
        assert inspect is not None, "rows come with what looks at their payloads"
        return check_tar(file, rows, inspect)
    return check_without_rows(file, shard, rows)


def _utterance_findings(
    rows: ShardRows, entry: ShardEntry, manifest: Manifest, row: int, member: str, data: bytes
) -> Iterator[Finding]:
    if member == JSON_MEMBER:
        faults = json_faults(data, rows, row, entry, manifest)
    elif member == AUDIO_MEMBER:
        faults = audio_faults(data, int(rows.num_samples[row]))
    else:
        faults = () if manifest.teacher is None else teacher_faults(data, manifest.teacher)
    return (Finding(shard=entry.name, key=rows.keys[row], what=what) for what in faults)


def _output_findings(rows: TarRows, facts: TeacherFacts, row: int, _member: str, data: bytes) -> Iterator[Finding]:
    return (Finding(shard=rows.shard, key=rows.keys[row], what=what) for what in teacher_faults(data, facts))


def _another(own: _Opened, checked: Sequence[_Checked]) -> Iterator[Finding]:
    if checked and own.index_differs and all(shard.differs for shard in checked):
        what = "is of another build: neither the index nor any shard is the one that it names"
        yield Finding(shard=MANIFEST_NAME, what=what)


def _categories(manifest: Manifest, checked: Sequence[_Checked]) -> Iterator[Finding]:
    known = [shard.categories for shard in checked if shard.categories is not None]
    found = set().union(*known)
    if len(known) == len(checked) and found != set(manifest.categories):
        here, there = sorted(found - set(manifest.categories)), sorted(set(manifest.categories) - found)
        what = f"lists categories {list(manifest.categories)}: {here} are missing there, and {there} do not occur"
        yield Finding(shard=MANIFEST_NAME, what=what)


def _doubles(index: IndexFile | None, shards: Sequence[ShardEntry], checked: Sequence[_Checked]) -> Iterator[Finding]:
    """Keys that stand in more than one shard; they are compared as hashes, eight bytes each."""
    hashes = np.concatenate([np.zeros(0, np.int64), *(np.unique(shard.key_hashes) for shard in checked)])
    values, counts = np.unique(hashes, return_counts=True)
    doubled = values[counts > 1]
    first: dict[str, str] = {}
    num_named = 0
    for shard, one in zip(shards, checked, strict=True):
        if not np.isin(one.key_hashes, doubled).any():
            continue
        for key in dict.fromkeys(_keys(index, shard.name) or ()):
            if first.setdefault(key, shard.name) != shard.name and num_named < _MOST_DOUBLES:
                num_named += 1
                yield Finding(shard=shard.name, key=key, what=f"comes twice in the set: in {first[key]} too")
