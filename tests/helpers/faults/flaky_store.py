"""A store in memory that fails as it is reported, through fsspec like any other; fixtures and what tests state to
it."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from ccts_dist.shards.stores.fetch_cache import FetchCache
from ccts_dist.shards.stores.remote import RemoteStore
from ccts_dist.shards.stores.retry import RetryPolicy
from ccts_dist.shards.stores.store import FileStore
from ccts_dist.shards.stores.transfer import RemoteRoot

SECRET = "wJalrXUtnFEMI"
HASTY = RetryPolicy(attempts=4, stall_s=0.4, first_wait_s=0.01, longest_wait_s=0.02)


@dataclass(frozen=True)
class Listed:
    """A file as a manifest lists it."""

    name: str
    size_bytes: int
    sha256: str


def listed(name: str, data: bytes) -> Listed:
    """What an honest manifest states of ``data``."""
    return Listed(name, len(data), hashlib.sha256(data).hexdigest())


def content(number: int, size: int = 3_000_000) -> bytes:
    """Bytes that report files apart, more than one piece of a transfer."""
    return bytes([number]) * size


class Flaky(MemoryFileSystem):
    """Files in memory; each opening first does the next of ``troubles``."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    troubles: ClassVar[list[Callable[[], None]]] = []
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            self.opened.append(path.rpartition("/")[2])
            if self.troubles:
                self.troubles.pop(0)()
        return super()._open(path, mode, **options)


@contextmanager
def flaky_file_system() -> Iterator[type[Flaky]]:
    """Known to fsspec meanwhile, and empty at first."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    try:
        yield Flaky
    finally:
        Flaky.store.clear()
        Flaky.troubles.clear()
        Flaky.opened.clear()


def put(name: str, data: bytes) -> Listed:
    """Lay a file into the store that tests fetch from."""
    fsspec.filesystem("flaky").pipe_file(f"/place/set/{name}", data)
    return listed(name, data)


def flaky_store(folder: Path, *, limit: int = 100_000_000, threads: int = 2) -> RemoteStore:
    return RemoteStore(RemoteRoot("flaky://place/set", HASTY), FetchCache(folder, limit), threads=threads)


def read(store: FileStore, file: Listed) -> bytes:
    with store.opened(file) as descriptor:
        return os.pread(descriptor, file.size_bytes + 1, 0)


def raises(error: BaseException) -> Callable[[], None]:
    def trouble() -> None:
        raise error

    return trouble


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s"
        time.sleep(0.005)
