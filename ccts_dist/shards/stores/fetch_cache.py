"""A folder of fetched files, bounded in bytes, that many processes share and any of them may be killed in.

Names say all there is to know, so that there is no state to lose: ``<digest>-<name>`` is a whole file, and
``.<digest>-<name>.<bytes>.partial`` one that somebody fetches; it counts with its whole size from the start. Who
fetches holds a lock on it, which the system takes back when the process ends, however it ends. All changes of the
folder are made under one lock of the cache.
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

from ccts_dist.errors import ConfigError
from ccts_dist.shards.stores.transfer import StoredFile

_LOCK_NAME = ".lock"
_WHOLE = re.compile(r"[0-9a-f]{32}-.+")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}-.+\.([0-9]+)\.partial")
_NAME_LETTERS = 120
"""Of a long name the end is kept, so that ours stay below the 255 bytes that file systems allow."""


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
        """Where to put the file's bytes."""
        self._cache, self._name, self._lock = cache, name, lock
        self._published = False

    def publish(self) -> int:
        """Show the file, which is whole, to everybody.

        Returns:
            A descriptor of it, open for reading, which stays good if the file is evicted. The caller closes it.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
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

    Files are trusted by name and size: they were verified when they came, and every member is checked when it is read.
    So nothing is forced to disk either: what a power cut damages is found, discarded and fetched again.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, touch_s: float = 5.0) -> None:
        """
        Args:
            limit_bytes: of all files in it, also those that are being fetched. Exceeded only by a single file that
                is larger by itself, and then it is alone.
            touch_s: use of a file is noted at most this often.

        Raises:
            ConfigError: the folder cannot be made or written.
        """
        self.folder, self.limit_bytes, self._touch_s = folder, limit_bytes, touch_s
        self._folder_words = str(folder)  # of which paths are made faster
        self._touched: dict[str, float] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.locked():
                pass
        except OSError as error:
            raise ConfigError(
                f"data.cache: {folder} cannot be written ({error.strerror}). Name a folder on a disk of this machine."
            ) from error

    def open(self, file: StoredFile) -> int | None:
        """A descriptor of a file that is in the cache, for the caller to close; None if it is not."""
        name = cached_name(file)
        try:
            descriptor = os.open(f"{self._folder_words}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != file.size_bytes:  # cut by other hands
            with self.locked():
                if self.is_current(file, descriptor):
                    self.path(file).unlink()
            os.close(descriptor)
            return None
        self._touch(name, descriptor)
        return descriptor

    def path(self, file: StoredFile) -> Path:
        """Where a file lies if it is here."""
        return self.folder / cached_name(file)

    def is_current(self, file: StoredFile, descriptor: int) -> bool:
        """Whether a descriptor is of the file that is in the cache now, and not of one that was there before."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path(file)))
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
            if (self.folder / name).exists():
                return Refusal.HERE
            partial = self.folder / f".{name}.{file.size_bytes}.partial"
            lock = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock_now(lock):
                os.close(lock)
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
        """What the files in the folder take, with what is being fetched at its whole size."""
        with self.locked():
            whole, reserved = self._scan("")
        return reserved + sum(file.size for file in whole)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process or thread changes the folder meanwhile."""
        descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
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
                    if _is_fetched(entry.path):
                        reserved += int(partial[1])
                    else:
                        os.unlink(entry.path)
                elif _WHOLE.fullmatch(entry.name):
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
    """What a file is called in the cache: no two different files are called the same."""
    return f"{file.sha256[:32]}-{file.name[-_NAME_LETTERS:]}"


def _note_use(descriptor: int) -> None:
    now = time.time_ns()  # the kernel's own "now" is some milliseconds coarse, too coarse for an order
    os.utime(descriptor, ns=(now, now))


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_fetched(partial: str) -> bool:
    """Whether a living process holds the lock of a file that is being fetched."""
    descriptor = os.open(partial, os.O_RDWR)
    try:
        return not _lock_now(descriptor)
    finally:
        os.close(descriptor)
