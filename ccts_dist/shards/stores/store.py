"""Stores of shard sets' and teacher caches' files: the protocol, and the folder on this machine."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ccts_dist.errors import MissingShardsError, ShardError
from ccts_dist.limits import LIMITS, open_regular, read_limited
from ccts_dist.shards.stores.transfer import StoredFile

_MOST_AT_ONCE = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchStatistics:
    """Downloads of a store to this process since it was opened here."""

    num_files: int = 0
    size_bytes: int = 0
    fetching_s: float = 0.0
    """Seconds in which at least one transfer of this process ran."""

    waiting_s: float = 0.0
    """Seconds in which at least one reader of this process waited for a file, whoever fetched it."""

    num_waiting: int = 0
    """Readers that wait just now."""


@runtime_checkable
class FileStore(Protocol):
    """The files of a shard set or teacher cache. Can be pickled; safe with threads and processes."""

    @property
    def words(self) -> str:
        """The place, for people."""
        ...

    @property
    def root(self) -> Path | str:
        """The folder, or the address."""
        ...

    @property
    def statistics(self) -> FetchStatistics: ...

    def read_bytes(self, name: str, intact: Callable[[bytes], bool] = lambda _: True) -> bytes:
        """A small file, such as a manifest.

        Args:
            intact: whether bytes are as they were written; what was damaged on its way is asked for again. What lies
                there damaged is returned as it is, for the caller to name what is wrong with it.

        Raises:
            MissingShardsError: there is no such file that may be read.
            FetchError: it did not come.
        """
        ...

    def opened(self, file: StoredFile) -> contextlib.AbstractContextManager[int]:
        """A descriptor to read a file by offset, which stays good whatever happens to the file meanwhile.

        Raises:
            ShardError: there is no such file, or another one under its name.
            FetchError: it cannot be had just now.
        """
        ...

    def path(self, file: StoredFile) -> Path:
        """A path of a file on this machine. One of a store may be evicted at any time: read through ``opened``.

        Raises:
            ShardError: as ``opened``.
        """
        ...

    def discard(self, file: StoredFile, descriptor: int) -> bool:
        """Forget a file that turned out to be damaged. True if opening it again gives a fresh one.

        A file is fetched anew once per process: what is damaged again is damaged where it comes from.

        Args:
            descriptor: what was read from.
        """
        ...

    def prefetch(self, files: Sequence[StoredFile]) -> None:
        """Report which files are needed soon, the soonest first; replaces what was reported before, and returns at
        once."""
        ...

    def close(self) -> None:
        """End what ``prefetch`` began, and waiting for files: who waits gets a ``FetchError``. It can be read again."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of a store. Can be pickled."""

    store: FileStore
    file: StoredFile

    def __str__(self) -> str:
        return f"{self.store.words}/{self.file.name}"

    def opened(self) -> contextlib.AbstractContextManager[int]:
        """See ``FileStore.opened``."""
        return self.store.opened(self.file)

    def discard(self, descriptor: int) -> bool:
        """See ``FileStore.discard``."""
        return self.store.discard(self.file, descriptor)


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file as something other than a shard's entry reports of it."""

    name: str
    size_bytes: int = 0
    sha256: str = ""


def limit_of(name: str) -> str:
    """The key in ``limits.LIMITS`` of a small file of a shard set or cache, by its name."""
    return name if name in LIMITS else "record of a build"


def stored_at(path: Path) -> Stored:
    """A file of a folder on this machine."""
    return Stored(LocalStore(path.parent), NamedFile(path.name))


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """The bytes at an offset; fewer when the file ends before."""
    # A place is made for all that is asked for, whatever a sealed document states: never more than this at a time.
    data = os.pread(descriptor, min(size, _MOST_AT_ONCE), offset)
    while len(data) < size and (more := os.pread(descriptor, min(size - len(data), _MOST_AT_ONCE), offset + len(data))):
        data += more  # a network file system may give less than was asked for
    return data


def reason_of(error: ShardError | OSError) -> str:
    """Why a file could not be opened or read, in the system's words where it reported so."""
    fault = error if isinstance(error, OSError) else error.__cause__
    return str(fault.strerror) if isinstance(fault, OSError) else str(error)


class Opened:
    """A descriptor that is closed when the block ends."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class LocalStore:
    """A folder; its files are read where they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._words = folder, str(folder)

    @property
    def words(self) -> str:
        """See ``FileStore``."""
        return self._words

    @property
    def root(self) -> Path:
        """See ``FileStore``."""
        return self._folder

    @property
    def statistics(self) -> FetchStatistics:
        """See ``FileStore``: nothing is fetched."""
        return FetchStatistics()

    def read_bytes(self, name: str, intact: Callable[[bytes], bool] = lambda _: True) -> bytes:
        """See ``FileStore``."""
        try:
            return read_limited(self._folder / name, limit_of(name))
        except OSError as error:
            raise MissingShardsError(
                f"{self._folder / name}: cannot be read ({error.strerror}). Name the folder where the shard set or "
                "teacher cache lies."
            ) from error

    def opened(self, file: StoredFile) -> Opened:
        """See ``FileStore``."""
        path = f"{self._words}/{file.name}"  # this and Opened: a twentieth of what decoding takes, in pathlib's place
        try:
            return Opened(open_regular(path))
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be read ({error.strerror}). Run shards/check.py {self._folder}"
            ) from error

    def path(self, file: StoredFile) -> Path:
        """See ``FileStore``; the file may be missing."""
        return self._folder / file.name

    def discard(self, file: StoredFile, descriptor: int) -> bool:
        """See ``FileStore``: nothing is ever removed here."""
        return False

    def prefetch(self, files: Sequence[StoredFile]) -> None:
        """See ``FileStore``: they are here."""

    def close(self) -> None:
        """See ``FileStore``: nothing runs."""
