"""Files that are either whole or not there: temporary name, sync to disk, rename."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_open(path: Path, *, while_written: str = "") -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends well, and not at all when it does not.

    What a killed process leaves behind is one hidden ``.partial`` file, which the next try overwrites.

    Args:
        while_written: what it is called meanwhile, for a file that several processes may write at the same time.
    """
    partial = path.with_name(f".{while_written or path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)
    sync_folder(path.parent)


def atomic_write(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Put ``data`` under ``path``, replacing what was there at one stroke.

    Args:
        shared: several processes may write it at the same time; one that is killed leaves a file that none writes over.
    """
    with atomic_open(path, while_written=secrets.token_hex(8) if shared else "") as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames and new files in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as lower-case hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
