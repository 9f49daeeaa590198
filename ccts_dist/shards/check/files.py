"""The files of a shard set or cache as wholes: there, of the right size and digest, and nothing beside them."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path

from ccts_dist.errors import FetchError, MissingShardsError, ShardError
from ccts_dist.limits import LIMITS
from ccts_dist.shards.build.output import BUILDING
from ccts_dist.shards.check.findings import Finding
from ccts_dist.shards.format.schema import MANIFEST_NAME
from ccts_dist.shards.format.sealed_json import is_sealed
from ccts_dist.shards.stores.store import FileStore, LocalStore
from ccts_dist.shards.stores.transfer import StoredFile


def read_manifest(store: FileStore) -> bytes | Finding:
    """The bytes of a manifest.

    Raises:
        MissingShardsError: there is none.
        FetchError: a store does not answer.
    """
    if isinstance(store, LocalStore):
        facts = None
        with suppress(OSError):  # why it cannot be read is reported where it is read
            facts = (store.root / MANIFEST_NAME).stat()
        if facts is not None and not stat.S_ISREG(facts.st_mode):
            return Finding(shard=MANIFEST_NAME, what="is no regular file")
        if facts is not None and facts.st_size > LIMITS[MANIFEST_NAME]:
            return Finding(shard=MANIFEST_NAME, what=f"has {facts.st_size} bytes, more than any manifest")
    return store.read_bytes(MANIFEST_NAME, is_sealed)


def read_small(store: FileStore, name: str, sha256: str) -> bytes | Finding:
    """The bytes of a small file that must be there; its digest is the caller's to check.

    Raises:
        FetchError: a store does not answer.
    """
    if isinstance(store, LocalStore) and (fault := _local_fault(store.root / name)):
        return Finding(shard=name, what=fault)
    try:
        return store.read_bytes(name, lambda data: not sha256 or hashlib.sha256(data).hexdigest() == sha256)
    except MissingShardsError:
        return Finding(shard=name, what="is missing")


def open_stored(opened: ExitStack, store: FileStore, file: StoredFile) -> BufferedReader | Finding:
    """A file to read by offset for as long as ``opened`` lives.

    Raises:
        FetchError: a store does not answer.
    """
    if isinstance(store, LocalStore) and (fault := _local_fault(store.root / file.name)):
        return Finding(shard=file.name, what=fault)
    try:
        descriptor = opened.enter_context(store.opened(file))
    except FetchError:
        raise
    except ShardError as error:
        return Finding(shard=file.name, what=str(error))
    return opened.enter_context(os.fdopen(descriptor, "rb", closefd=False))


def whole_fault(file: BufferedReader, named: StoredFile, *, size_only: bool = False) -> str:
    """In words how a file differs from the one that the manifest names; empty if it does not."""
    size = os.fstat(file.fileno()).st_size
    if size != named.size_bytes:
        return f"has {size} bytes, and the manifest states {named.size_bytes}"
    if not size_only and hashlib.file_digest(file, "sha256").hexdigest() != named.sha256:
        return "differs from the manifest's SHA-256"
    return ""


def beside(store: FileStore, listed: set[str]) -> Iterator[Finding]:
    """Tars that no manifest names, and what interrupted builds have left, in a folder on this machine."""
    if not isinstance(store, LocalStore):
        return
    for path in sorted(store.root.iterdir()):
        if path.suffix == ".tar" and not path.name.startswith(".") and path.name not in listed:
            yield Finding(shard=path.name, what="is not in the manifest")
        elif path.name == BUILDING:
            yield Finding(shard=path.name, what="is left of a build that was interrupted: delete it", leftover=True)
        elif path.name.startswith(".") and path.name.endswith(".partial"):
            yield Finding(shard=path.name, what="is left of a write that was interrupted: delete it", leftover=True)
        elif path.name == "index.parquet":
            yield Finding(shard=path.name, what="is an index of format version 1: delete it", leftover=True)


def _local_fault(path: Path) -> str:
    """Why a path is not to be opened: a pipe would be waited for, and a device may have no end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return "" if stat.S_ISREG(mode) else "is no regular file"
