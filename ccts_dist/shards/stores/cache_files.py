"""Single files of a cache folder that other users may write into: what may be opened, and what must not be believed.

Somebody else may have put a link, a pipe, a folder or a file of other bytes under a name of ours.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from pathlib import Path

from ccts_dist.errors import ConfigError

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def refuse_open_folder(folder: Path) -> None:
    """Refuse a folder in which anybody may replace or remove the files of others.

    Raises:
        ConfigError: it may be written by all, and has no sticky bit.
    """
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"data.shard_cache: anybody may replace files in {folder}. Set its sticky bit (chmod +t), take the "
            "right from others (chmod o-w), or name a folder of your own."
        )


def is_own(facts: os.stat_result) -> bool:
    """True for a file of this user's that nobody else may write."""
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def has_digest(descriptor: int, sha256: str) -> bool:
    """True for a file whose bytes have this SHA-256."""
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def open_planted_safe(path: str) -> int | None:
    """A descriptor to read a regular file; None for a link, a pipe, a folder, or what may not be read.

    Raises:
        FileNotFoundError: there is nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM):
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


def remove(path: Path) -> None:
    """Remove whatever stands under a name of the cache.

    Raises:
        ConfigError: it may not be removed.
    """
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(
            f"data.shard_cache: {path} is not the file that belongs there, and cannot be removed "
            f"({error.strerror}). Remove it, or name a folder of your own."
        ) from error


def open_partial(path: Path) -> int | None:
    """A locked descriptor of a file that is about to be fetched; None while somebody else fetches it.

    Raises:
        ConfigError: something else stands under its name and may not be removed.
    """
    flags = os.O_RDWR | os.O_CREAT | _SAFELY
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENXIO):
            raise
        if is_fetched(str(path)):
            return None
    else:
        if not lock_now(descriptor):
            os.close(descriptor)
            return None
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and facts.st_nlink == 1:
            return descriptor
        os.close(descriptor)
    remove(path)
    descriptor = os.open(path, flags | os.O_EXCL, 0o644)
    lock_now(descriptor)
    return descriptor


def lock_now(descriptor: int) -> bool:
    """Lock a file, or False when somebody else has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_fetched(partial: str) -> bool:
    """True while a living process holds the lock of a file that is being fetched."""
    try:
        try:
            descriptor = os.open(partial, os.O_RDWR | _SAFELY)  # network file systems lock only what may be written
        except PermissionError:
            descriptor = os.open(partial, os.O_RDONLY | _SAFELY)
    except OSError:
        return False
    try:
        return not lock_now(descriptor)
    finally:
        os.close(descriptor)
