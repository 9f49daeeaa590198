"""The teacher cache as data: manifest, condition and members. ``shards/FORMAT.md`` is the normative text."""

import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ccts_dist.config.renamed import stored_name
from ccts_dist.errors import MissingShardsError, TeacherError
from ccts_dist.files.digests import Digest
from ccts_dist.records import Condition, TeacherOutput
from ccts_dist.shards.format.index import IndexPlace
from ccts_dist.shards.format.record_table import RecordTable, texts_of
from ccts_dist.shards.format.schema import (
    CONDITION_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    NO_TABLE,
    TeacherFacts,
    foreign_name,
)
from ccts_dist.shards.format.sealed_json import check_seal, is_sealed, parse_document
from ccts_dist.shards.format.tars import short
from ccts_dist.shards.stores.store import FileStore, LocalStore

_MOST_FEATURES = 1 << 16
"""Most features of an embedding. The widest encoders have a few thousand."""

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,9}),\), \} *\n", re.S
)
"""Begins an array as ``encode_output`` leaves it. Nothing else is parsed: NumPy would evaluate what stands there."""

_NPY_HEADER_BYTES = 128
"""Its length: NumPy fills it up to a multiple of 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShard:
    """One tar of a teacher cache, as its manifest lists it."""

    name: str
    """The source shard's."""

    source_sha256: Digest
    """SHA-256 of the source shard, so that a corpus may grow and keep what is cached."""

    num_utterances: int
    size_bytes: int
    sha256: Digest
    index: IndexPlace
    """Place of its rows in the cache's index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheManifest:
    """The manifest of a teacher cache; written last."""

    format_version: int = FORMAT_VERSION
    shard_set_digest: Digest
    """``content_digest`` of the shard set it was made for."""

    shards: Sequence[CacheShard]
    """In the order of the index's batches."""

    index_size_bytes: int
    index_sha256: Digest
    teacher: TeacherFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionFile:
    """``condition.json``: the fit, and the sums it was made of."""

    condition: Condition
    sums: Mapping[str, tuple[float, ...]]
    """By name, one number per target."""


def read_cache_manifest(store: FileStore) -> tuple[CacheManifest, str]:
    """A cache's manifest and the SHA-256 of its file.

    Raises:
        TeacherError: missing, damaged, or of another format version.
        FetchError: a store does not answer.
    """
    try:
        data = store.read_bytes(MANIFEST_NAME, is_sealed)
    except MissingShardsError as error:
        reason = "" if isinstance(store, LocalStore) else f": {error}"
        raise TeacherError(
            f"{store.words}: no teacher cache here (no readable {MANIFEST_NAME}{reason}). Make one with "
            "launch/cache_teacher.py, or run it again if it was interrupted."
        ) from error
    manifest = parse_cache_manifest(data, where=f"{store.words}/{MANIFEST_NAME}")
    if not isinstance(manifest.shards, RecordTable):
        raise TeacherError(f"{store.words}/{MANIFEST_NAME}: {NO_TABLE}. Run launch/cache_teacher.py again.")
    return manifest, hashlib.sha256(data).hexdigest()


def parse_cache_manifest(data: bytes, *, where: str) -> CacheManifest:
    """The cache's manifest in a file's bytes; ``where`` names the file.

    Raises:
        TeacherError: damaged, changed since it was written, or of another format version.
    """
    manifest = parse_document(CacheManifest, data, where=where, error=TeacherError, sealed=True, version=FORMAT_VERSION)
    if (name := foreign_name(texts_of(manifest.shards, "name"))) is not None:
        raise TeacherError(
            f"{where}: shard name {name!r} is not a plain file name as shards have. Do not use this cache."
        )
    check_seal(data, where=where, error=TeacherError)
    check_facts(manifest.teacher, where=where)
    return manifest


def check_facts(facts: TeacherFacts, *, where: str) -> None:
    """Refuse what a manifest states of a teacher and cannot be so, though it was sealed.

    Raises:
        TeacherError: names the first fault.
    """
    for fault in facts_faults(facts):
        raise TeacherError(f"{where}: {fault}. Run launch/cache_teacher.py again.")


def facts_faults(facts: TeacherFacts) -> Iterator[str]:
    """Faults, in words, of what a manifest states of a teacher."""
    if not 0 < facts.embedding_size <= _MOST_FEATURES:
        yield f"states an embedding_size of {facts.embedding_size}: must be 1 to {_MOST_FEATURES}"
    for name in ("embedding_mean", "embedding_std"):
        values = getattr(facts, name)
        if len(values) != facts.embedding_size:
            yield f"has {len(values)} numbers for {stored_name(name)}, and embedding_size is {facts.embedding_size}"
        if not all(map(math.isfinite, values)) or (name == "embedding_std" and min(values, default=0) < 0):
            yield f"has a number for {stored_name(name)} that cannot be one"
    if not facts.targets or len(set(facts.targets)) != len(facts.targets):
        yield f"names no target of the teacher, or one twice: {_names(facts.targets)}"


def condition_faults(condition: Condition, facts: TeacherFacts) -> Iterator[str]:
    """Faults, in words, of a condition by itself and beside its teacher."""
    if condition.targets != facts.targets:
        yield f"is of targets {_names(condition.targets)}, and the teacher predicts {_names(facts.targets)}"
    for name in ("w", "b", "residual_std", "num_rows"):
        values = getattr(condition, name)
        if len(values) != len(facts.targets) or not all(map(math.isfinite, values)):
            shown = short(str(list(values)))[1:-1]
            yield f"has {shown} for {stored_name(name)}: one finite number per target must be there"
        elif name in ("residual_std", "num_rows") and min(values, default=0) < 0:
            yield f"has {short(str(list(values)))[1:-1]} for {stored_name(name)}: must not be below 0"


def _names(names: Sequence[str]) -> str:
    return short(", ".join(names))[1:-1] or "none"


def read_condition(store: FileStore, facts: TeacherFacts) -> Condition:
    """The condition beside a manifest, checked against the digest in it.

    Raises:
        TeacherError: missing, or not the manifest's.
        FetchError: a store does not answer.
    """

    def is_named(data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == facts.condition_sha256

    where = f"{store.words}/{CONDITION_NAME}"
    try:
        data = store.read_bytes(CONDITION_NAME, is_named)
    except MissingShardsError as error:
        raise TeacherError(f"{where}: is missing. Run launch/cache_teacher.py again.") from error
    if not is_named(data):
        raise TeacherError(f"{where}: is not the one that the manifest names. Run launch/cache_teacher.py again.")
    condition = parse_document(ConditionFile, data, where=where, error=TeacherError).condition
    for fault in condition_faults(condition, facts):
        raise TeacherError(f"{where}: {fault}. Run launch/cache_teacher.py again.")
    return condition


def encode_output(output: TeacherOutput) -> bytes:
    """The ``teacher.npy`` member: one float32 array, the embedding and then the predictions."""
    vector = np.concatenate([output.embedding, output.prediction]).astype("<f4")
    file = io.BytesIO()
    np.lib.format.write_array(file, vector, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def output_size(num_values: int) -> int:
    """Bytes of a ``teacher.npy`` member of so many numbers: NumPy's header and four bytes each."""
    return _NPY_HEADER_BYTES + 4 * num_values


def decode_output(data: bytes, embedding_size: int, num_targets: int) -> TeacherOutput:
    """The inverse of ``encode_output``.

    Raises:
        ValueError: no float32 array of that length as ``encode_output`` leaves it, or not finite; names which.
    """
    wanted = embedding_size + num_targets
    head = _NPY.match(data)
    if head is None or len(data) - head.end() != 4 * int(head[1]):
        raise ValueError(f"is no float32[{wanted}] as NumPy writes it")
    if int(head[1]) != wanted:
        raise ValueError(f"holds float32[{int(head[1])}], must be float32[{wanted}]")
    vector = np.frombuffer(data, "<f4", offset=head.end()).copy()
    if not np.isfinite(vector).all():
        raise ValueError("holds numbers that are not finite")
    return TeacherOutput(embedding=vector[:embedding_size], prediction=vector[embedding_size:])
