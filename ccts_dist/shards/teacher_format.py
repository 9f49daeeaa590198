"""The teacher cache as data: manifest, condition and members. ``shards/README.md`` is the normative text."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ccts_dist.errors import MissingShardsError, TeacherError
from ccts_dist.records import Condition, TeacherOutput
from ccts_dist.shards.documents import check_seal, is_sealed, parse_document
from ccts_dist.shards.index import IndexPlace
from ccts_dist.shards.schema import CONDITION_NAME, FORMAT_VERSION, MANIFEST_NAME, NO_TABLE, TeacherFacts, foreign_name
from ccts_dist.shards.stores.store import FileStore, LocalStore
from ccts_dist.shards.table import RecordTable, texts_of

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,9}),\), \} *\n", re.S
)
"""Begins an array as ``encode_output`` leaves it. Nothing else is parsed: NumPy would evaluate what stands there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShard:
    """One tar of a teacher cache, as its manifest lists it."""

    name: str
    """The source shard's."""

    source_sha256: str
    """SHA-256 of the source shard, so that a corpus may grow and keep what is cached."""

    num_utterances: int
    size_bytes: int
    sha256: str
    index: IndexPlace
    """Where its rows lie in the cache's index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheManifest:
    """What a teacher cache is; written last."""

    format_version: int = FORMAT_VERSION
    shard_set_digest: str
    """``content_digest`` of the shard set it was made for."""

    shards: Sequence[CacheShard]
    """In the order of the index's batches."""

    index_size_bytes: int
    index_sha256: str
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
    return manifest


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
    return parse_document(ConditionFile, data, where=where, error=TeacherError).condition


def encode_output(output: TeacherOutput) -> bytes:
    """The ``teacher.npy`` member: one float32 array, the embedding and then the predictions."""
    vector = np.concatenate([output.embedding, output.prediction]).astype("<f4")
    file = io.BytesIO()
    np.lib.format.write_array(file, vector, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_output(data: bytes, embedding_size: int, num_targets: int) -> TeacherOutput:
    """The inverse of ``encode_output``.

    Raises:
        ValueError: no float32 array of that length as ``encode_output`` leaves it, or not finite; says which.
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
