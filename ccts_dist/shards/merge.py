"""Merging a shard set with a teacher cache: single shards that carry audio, transcript and teacher."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ccts_dist.errors import ConfigError, OutputError, ShardError, is_full
from ccts_dist.files.atomic import atomic_write, file_sha256
from ccts_dist.shards.format.dataset_card import CARD_NAME, dataset_card, is_dataset_card
from ccts_dist.shards.format.index import rows_to_table
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.readback import read_back
from ccts_dist.shards.format.schema import (
    CONDITION_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    TEACHER_MEMBER,
    ShardEntry,
    escape_key,
    local_folder,
    parse_manifest,
)
from ccts_dist.shards.format.tars import write_tar
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache


def merge_shards(
    shard_set: ShardSet,
    cache: TeacherCache,
    out: str | Path,
    *,
    progress: Callable[[int], object] | None = None,
) -> str:
    """Write the merged shard set: the same shards, utterances and order, and each utterance's ``teacher.npy`` beside.

    Members are copied byte by byte. The manifest keeps the plain set's digest as its ``source_digest``, so that both
    are trained on in the same order. Does nothing where the same merge has been finished before.

    Args:
        cache: opened for this shard set.
        progress: called with the number of shards dealt with since the last call.

    Returns:
        The merged set's digest.

    Raises:
        TeacherError: the cache lacks a shard or an utterance, or is damaged.
        ShardError: the shard set is damaged, or is itself a merged one.
        ConfigError: the folder holds something else, or cannot be made.
        OutputError: it cannot be written to: a full disk.
    """
    root = local_folder(out, what="merged shard set")
    source = shard_set.manifest
    if source.teacher is not None:
        raise ShardError(f"{shard_set.root}: carries teacher outputs already. Merge from the plain shard set.")
    finished = _finished_merge(root, shard_set, cache)
    if finished is not None:
        return finished
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{root}: cannot be made ({error.strerror}). Name another folder with --out.") from error
    try:
        return _write_merged(shard_set, cache, root, progress)
    except OSError as error:
        if not is_full(error):
            raise
        raise OutputError(
            f"{root}: cannot be written ({error.strerror or error}). Make room, and run the same command again."
        ) from error


def _write_merged(
    shard_set: ShardSet, cache: TeacherCache, root: Path, progress: Callable[[int], object] | None
) -> str:
    source = shard_set.manifest
    members = (*source.members, TEACHER_MEMBER)
    entries = []
    with IndexWriter(root / INDEX_NAME) as index:
        for entry in source.shards:
            path = root / entry.name
            write_tar(path, _merged_samples(shard_set, cache, entry))
            place = index.add(rows_to_table(read_back(path, targets=source.targets, members=members)))
            entries.append(replace(entry, size_bytes=path.stat().st_size, sha256=file_sha256(path), index=place))
            if progress is not None:
                progress(1)
    atomic_write(root / CONDITION_NAME, cache.store.read_bytes(CONDITION_NAME))
    manifest = replace(
        source,
        members=members,
        shards=tuple(entries),
        index_size_bytes=index.size_bytes,
        index_sha256=index.sha256,
        source_digest=shard_set.digest,
        teacher=replace(cache.facts, cache_digest=cache.digest),
    )
    data = manifest.to_bytes()
    card = root / CARD_NAME
    if not card.exists() or is_dataset_card(card.read_bytes()):  # the user's own stays
        atomic_write(card, dataset_card(manifest))
    atomic_write(root / MANIFEST_NAME, data)
    return hashlib.sha256(data).hexdigest()


def _merged_samples(
    shard_set: ShardSet, cache: TeacherCache, entry: ShardEntry
) -> Iterator[tuple[str, dict[str, bytes]]]:
    rows = shard_set.rows(entry.name)
    for row, key in enumerate(rows.keys):
        payloads = {member: shard_set.member(rows, row, member) for member in rows.members}
        yield escape_key(key), {**payloads, TEACHER_MEMBER: cache.read_bytes(entry.name, row, key)}


def _finished_merge(root: Path, shard_set: ShardSet, cache: TeacherCache) -> str | None:
    """The digest of the same merge if it was finished before; None when the folder holds no shard set."""
    sources = [source for source in (shard_set.root, cache.root) if isinstance(source, Path)]
    if root.exists() and any(os.path.samefile(root, source) for source in sources):
        raise ConfigError(f"{root}: holds what is to be merged. Name another folder for the merged shards.")
    path = root / MANIFEST_NAME
    if not path.exists():
        return None
    data = path.read_bytes()
    manifest = parse_manifest(data, where=str(path))
    if manifest.teacher is None or (manifest.source_digest, manifest.teacher.cache_digest) != (
        shard_set.digest,
        cache.digest,
    ):
        raise ConfigError(f"{root}: holds another shard set. Name another folder, or delete that one.")
    return hashlib.sha256(data).hexdigest()
