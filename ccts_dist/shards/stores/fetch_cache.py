"""A folder of fetched files, bounded in bytes, that many processes share and any of them may be killed in.

Names hold all there is to know, so that there is no state to lose: ``<digest>-<name>`` is a whole file, and
``.<digest>-<name>.<bytes>.partial`` one that somebody fetches; it counts with its whole size from the start. Who
fetches holds a lock on it, which the system takes back when the process ends, however it ends. All changes of the
folder are made under one lock of the cache.

Several users may share the folder. Links are never followed. A file that belongs to somebody else, or that others may
write, is believed only after its SHA-256 has been compared: ``cache_files`` has these rules.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

from ccts_dist.errors import ConfigError, FetchError, ShardError
from ccts_dist.files.digests import is_digest
from ccts_dist.shards.stores.cache_files import (
    has_digest,
    is_fetched,
    is_own,
    open_partial,
    open_planted_safe,
    refuse_open_folder,
    remove,
)
from ccts_dist.shards.stores.transfer import StoredFile

_LOCK_NAME = ".lock"
_WHOLE = re.compile(r"[0-9a-f]{32}-.+")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}-.+\.([0-9]{1,16})\.partial")
_NAME_LETTERS = 120
"""Length of a long name's end that is kept, so that ours stay below the 255 bytes that file systems allow."""


class Refusal(Enum):
    """Why nothing was reserved."""

    HERE = "the file is in the cache already"
    FETCHING = "somebody fetches it just now"
    FULL = "there is no room until others are done"


@dataclass(frozen=True, slots=True)
class _Whole:
    name: str
    size: int
    used: int
    """Last use, nanoseconds."""


class Reservation:
    """Room for one file, and the right to fetch it; given back when the block ends without ``publish``."""

    def __init__(self, cache: "FetchCache", partial: Path, name: str, lock: int) -> None:
        self.path = partial
        """Path to put the file's bytes."""
        self._cache, self._name, self._lock = cache, name, lock
        self._published = False

    def publish(self) -> int:
        """Show the file, which is whole, to everybody.

        Returns:
            A descriptor of it, open for reading, which stays good if the file is evicted. The caller closes it.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not os.path.samestat(os.fstat(descriptor), os.fstat(self._lock)):
            os.close(descriptor)
            raise FetchError(f"{self.path}: was replaced while it was fetched. Name a data.shard_cache of your own.")
        with self._cache.locked():
            _note_use(descriptor)
            os.replace(self.path, self._cache.folder / self._name)
        self._published = True
        return descriptor

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:  # else somebody may fetch it anew by now, under the same name
            with self._cache.locked():
                self.path.unlink(missing_ok=True)
        os.close(self._lock)


class FetchCache:
    """The folder. Can be pickled; safe with threads and processes.

    One's own files are trusted by name and size: they were verified when they came, and every member is checked when it
    is read. So nothing is forced to disk either: what a power cut damages is found, discarded and fetched again.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, touch_s: float = 5.0) -> None:
        """
        Args:
            limit_bytes: of all files in it, also those that are being fetched. Exceeded only by a single file that
                is larger by itself, and then it is alone.
            touch_s: use of a file is noted at most this often.

        Raises:
            ConfigError: the folder cannot be made or written, or anybody may replace files in it.
        """
        self.folder, self.limit_bytes, self._touch_s = folder, limit_bytes, touch_s
        self._folder_words = str(folder)  # of which paths are made faster
        self._touched: dict[str, float] = {}
        self._verified: set[tuple[str, int, int]] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_open_folder(folder)
            with self.locked():
                pass
        except OSError as error:
            raise ConfigError(
                f"data.shard_cache: {folder} cannot be written ({error.strerror}). Name a folder on a disk of "
                "this machine."
            ) from error

    def open(self, file: StoredFile) -> int | None:
        """A descriptor of a file that is in the cache, for the caller to close; None if it is not.

        What stands under its name and is another file is removed.

        Raises:
            ConfigError: it cannot be removed.
            ShardError: no file can have such a name or digest.
        """
        name = cached_name(file)
        try:
            descriptor = open_planted_safe(f"{self._folder_words}/{name}")
        except FileNotFoundError:
            return None
        if descriptor is None:  # a link, a folder, or nobody's to read
            with self.locked():
                remove(self.path(file))
            return None
        if not self._is_sound(name, file, descriptor):
            with self.locked():
                if self.is_current(file, descriptor):
                    remove(self.path(file))
            os.close(descriptor)
            return None
        self._touch(name, descriptor)
        return descriptor

    def _is_sound(self, name: str, file: StoredFile, descriptor: int) -> bool:
        facts = os.fstat(descriptor)
        if facts.st_size != file.size_bytes:  # cut by other hands
            return False
        if is_own(facts):
            return True
        seen = (name, facts.st_ino, facts.st_ctime_ns)  # of any change the system keeps the time, and nobody sets it
        if seen not in self._verified:
            if not has_digest(descriptor, file.sha256):
                return False
            self._verified.add(seen)
        return True

    def path(self, file: StoredFile) -> Path:
        """Path of a file if it is here."""
        return self.folder / cached_name(file)

    def is_current(self, file: StoredFile, descriptor: int) -> bool:
        """True if a descriptor is of the file that is in the cache now, and not of one that was there before."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path(file)))
        except FileNotFoundError:
            return False

    def reserve(self, file: StoredFile, *, keep: Collection[str] = (), gently: bool = False) -> Reservation | Refusal:
        """Make room for a file that the caller is about to fetch, evicting what was not used for longest.

        Args:
            keep: names in the cache (``cached_name``) that are evicted last.
            gently: do not evict those at all.
        """
        name = cached_name(file)
        with self.locked():
            if os.path.lexists(self.folder / name):
                return Refusal.HERE
            partial = self.folder / f".{name}.{file.size_bytes}.partial"
            lock = open_partial(partial)
            if lock is None:
                return Refusal.FETCHING
            has_room = False
            try:
                has_room = self._make_room(file.size_bytes, partial.name, keep, gently)
            finally:
                if not has_room:  # a lock that stays would be waited for until the process ends
                    partial.unlink()
                    os.close(lock)
            return Reservation(self, partial, name, lock) if has_room else Refusal.FULL

    def used_bytes(self) -> int:
        """Size of the files in the folder, with what is being fetched at its whole size."""
        with self.locked():
            whole, reserved = self._scan("")
        return reserved + sum(file.size for file in whole)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process or thread changes the folder meanwhile."""
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDWR | flags, 0o644)
        except PermissionError:  # another user has made it: to lock it, it need not be written
            descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size: int, own: str, keep: Collection[str], gently: bool) -> bool:
        whole, reserved = self._scan(own)
        excess = reserved + sum(file.size for file in whole) + size - self.limit_bytes
        victims = sorted(whole, key=lambda file: (file.name in keep, file.used, file.name))
        if gently:
            victims = [file for file in victims if file.name not in keep]
        if excess > sum(file.size for file in victims) and (gently or reserved > 0):
            return False
        for file in victims:
            if excess <= 0:
                break
            with contextlib.suppress(PermissionError):  # another user's, in a folder where only owners remove
                (self.folder / file.name).unlink(missing_ok=True)
                excess -= file.size
        return True

    def _scan(self, own: str) -> tuple[list[_Whole], int]:
        """Whole files, and the bytes that those being fetched will take; removes what dead processes left."""
        whole, reserved = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name == own:
                    continue
                if partial := _PARTIAL.fullmatch(entry.name):
                    if is_fetched(entry.path):
                        reserved += int(partial[1])
                    else:
                        with contextlib.suppress(OSError):  # another user's, or a folder
                            os.unlink(entry.path)
                elif _WHOLE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    facts = entry.stat(follow_symlinks=False)
                    whole.append(_Whole(entry.name, facts.st_size, facts.st_mtime_ns))
        return whole, reserved

    def _touch(self, name: str, descriptor: int) -> None:
        now = time.monotonic()
        if now - self._touched.get(name, -self._touch_s) >= self._touch_s:
            self._touched[name] = now
            with contextlib.suppress(OSError):  # another user's file: it is read all the same
                _note_use(descriptor)


def cached_name(file: StoredFile) -> str:
    """Name of a file in the cache: no two different files are called the same.

    Raises:
        ShardError: its digest is none, or its name has a slash or NUL: as a path either would lead out of the folder.
    """
    if not is_digest(file.sha256) or "/" in file.name or "\0" in file.name:
        raise ShardError(
            f"{file.name[:80]!r} with digest {file.sha256[:80]!r}: must be a plain file name and a SHA-256 in "
            "hexadecimal digits. Do not use this shard set or cache."
        )
    return f"{file.sha256[:32]}-{file.name[-_NAME_LETTERS:]}"


def _note_use(descriptor: int) -> None:
    now = time.time_ns()  # the kernel's own "now" is some milliseconds coarse, too coarse for an order
    os.utime(descriptor, ns=(now, now))
