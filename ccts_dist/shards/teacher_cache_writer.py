"""Writing a teacher cache: a shard at a time, and its manifest when all are there."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ccts_dist.errors import TeacherError
from ccts_dist.files.atomic import atomic_write, file_sha256
from ccts_dist.files.digests import Digest
from ccts_dist.records import Condition, TeacherOutput
from ccts_dist.shards.format.index import (
    IndexPlace,
    MemberPlaces,
    place_columns,
)
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.schema import (
    CONDITION_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    TEACHER_MEMBER,
    ShardEntry,
    TeacherFacts,
    escape_key,
)
from ccts_dist.shards.format.sealed_json import document_bytes, parse_document, sealed_bytes
from ccts_dist.shards.format.tars import crc32_of, walk_tar, write_tar
from ccts_dist.shards.format.teacher_cache import (
    CacheManifest,
    CacheShard,
    ConditionFile,
    encode_output,
)
from ccts_dist.shards.shard_set import ShardSet

_PARTS = ".parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachePart:
    """The record of a finished cache shard, which lets a killed pass go on."""

    shard: CacheShard
    teacher_digest: Digest


def write_cache_shard(
    cache_root: Path,
    shard: str,
    source_sha256: str,
    rows: Iterable[tuple[str, TeacherOutput]],
    *,
    teacher_digest: str,
) -> None:
    """Write one cache shard whole, or not at all; equal input gives equal bytes.

    Different shards may be written by different ranks at the same time. A manifest that lies there is removed first:
    it no longer names what the cache holds.

    Args:
        shard: name of the source shard, and of the cache shard.
        source_sha256: the source shard's, from the shard set's manifest.
        rows: key as the corpus spells it, and the teacher's output; in the source shard's order.
        teacher_digest: SHA-256 of the teacher's weights.
    """
    (cache_root / _PARTS).mkdir(parents=True, exist_ok=True)
    (cache_root / MANIFEST_NAME).unlink(missing_ok=True)
    num_utterances = 0

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        nonlocal num_utterances
        for key, output in rows:
            num_utterances += 1
            yield escape_key(key), {TEACHER_MEMBER: encode_output(output)}

    path = cache_root / shard
    write_tar(path, samples())
    entry = CacheShard(
        name=shard,
        source_sha256=source_sha256,
        num_utterances=num_utterances,
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        index=IndexPlace(offset=0, size=0, sha256=""),  # known when all shards are there
    )
    part = _CachePart(shard=entry, teacher_digest=teacher_digest)
    atomic_write(_part_path(cache_root, shard), document_bytes(part))


def finished_cache_shards(cache_root: Path, shard_set: ShardSet, teacher_digest: str) -> set[str]:
    """Names of the shards that a pass need not do again: whole, by the same teacher, of the very same source shard."""
    return {
        shard.name
        for shard in shard_set.manifest.shards
        if _finished_part(cache_root, shard, teacher_digest) is not None
    }


def check_cache_is_of(cache_root: Path, shard_set: ShardSet, teacher_digest: str) -> None:
    """Refuse to go on in a folder, finished or not, that holds another teacher's outputs or those of other shards.

    A shard set that has grown, or of which some shards were built again, is the same as long as one cached shard is
    still its own.

    Raises:
        TeacherError: names both digests.
    """
    records = [part for part in map(_read_part, sorted((cache_root / _PARTS).glob("*.json"))) if part is not None]
    for part in records:
        if part.teacher_digest != teacher_digest:
            raise TeacherError(
                f"{cache_root}: holds outputs of teacher {part.teacher_digest[:12]}, and this teacher is "
                f"{teacher_digest[:12]}. Name another folder, or delete this one."
            )
    sources = {shard.name: shard.sha256 for shard in shard_set.manifest.shards}
    cached = {part.shard.name: part.shard.source_sha256 for part in records}
    if cached and not cached.items() & sources.items():
        name = next((name for name in cached if name in sources), next(iter(cached)))
        here = f"is {sources[name][:12]}" if name in sources else "does not exist"
        raise TeacherError(
            f"{cache_root}: was made for other shards: its {name} comes from one that is {cached[name][:12]}, and in "
            f"{shard_set.root} that shard {here}. Name another folder, or delete this one."
        )


def write_cache_manifest(
    cache_root: Path,
    shard_set: ShardSet,
    facts: TeacherFacts,
    *,
    splits: Sequence[str],
    condition: Condition,
    sums: Mapping[str, Sequence[float]],
) -> str:
    """Finish a cache whose shards are all written: index, condition, and the manifest last.

    Args:
        facts: the teacher; its ``condition_sha256`` is filled in here.
        splits: the splits that are cached.
        sums: by name, one number per target: what the condition was fitted from.

    Returns:
        The cache's digest.

    Raises:
        TeacherError: a shard is not finished, or its keys are not those of the source shard, in that order.
    """
    wanted = set(shard_set.shards_of(splits))
    sources = [shard for shard in shard_set.manifest.shards if shard in wanted]  # whatever order the splits came in
    cached = []
    with IndexWriter(cache_root / INDEX_NAME) as index:
        for source in sources:
            entry = _finished_part(cache_root, source, facts.weight_digest)
            if entry is None:
                raise TeacherError(
                    f"{cache_root / source.name}: not cached, or of another teacher or source shard. "
                    "Run launch/cache_teacher.py again."
                )
            table = _index_of(cache_root / source.name, shard_set.rows(source.name).keys)
            cached.append(replace(entry, index=index.add(table)))
    document = document_bytes(
        ConditionFile(condition=condition, sums={name: tuple(numbers) for name, numbers in sums.items()})
    )
    atomic_write(cache_root / CONDITION_NAME, document)
    manifest = CacheManifest(
        shard_set_digest=shard_set.content_digest,
        shards=tuple(cached),
        index_size_bytes=index.size_bytes,
        index_sha256=index.sha256,
        teacher=replace(facts, condition_sha256=hashlib.sha256(document).hexdigest()),
    )
    data = sealed_bytes(manifest)
    atomic_write(cache_root / MANIFEST_NAME, data)
    return hashlib.sha256(data).hexdigest()


def _part_path(cache_root: Path, shard: str) -> Path:
    return cache_root / _PARTS / f"{shard}.json"


def _read_part(record: Path) -> _CachePart | None:
    if not record.is_file():
        return None
    try:
        return parse_document(_CachePart, record.read_bytes(), where=str(record), error=TeacherError)
    except TeacherError:
        return None  # what cannot be read was not finished


def _finished_part(cache_root: Path, source: ShardEntry, teacher_digest: str) -> CacheShard | None:
    """The record of a cache shard if it still holds: same teacher, same source, same bytes."""
    path = cache_root / source.name
    part = _read_part(_part_path(cache_root, source.name))
    if part is None or not path.is_file():
        return None
    entry = part.shard
    if part.teacher_digest != teacher_digest or entry.source_sha256 != source.sha256:
        return None
    return entry if path.stat().st_size == entry.size_bytes and file_sha256(path) == entry.sha256 else None


def _index_of(path: Path, keys: Sequence[str]) -> pa.Table:
    """A cache shard's row group, from the tar as it lies there; its keys must be ``keys``, in order."""
    members = list(walk_tar(path))
    if [member.name for member in members] != [f"{escape_key(key)}.{TEACHER_MEMBER}" for key in keys]:
        raise TeacherError(
            f"{path}: its keys are not the source shard's. Delete it, run launch/cache_teacher.py again."
        )
    with open(path, "rb") as file:
        checksums = []
        for member in members:
            file.seek(member.offset)
            checksums.append(crc32_of(file.read(member.size)))
    places = MemberPlaces(
        offset=np.array([member.offset for member in members], np.int64),
        size=np.array([member.size for member in members], np.int64),
        crc32=np.array(checksums, np.uint32),
    )
    return pa.table({"key": pa.array(list(keys), pa.string()), **place_columns({TEACHER_MEMBER: places})})
