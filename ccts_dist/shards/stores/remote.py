"""Files of a shard set or teacher cache that lie somewhere else.

A file is fetched whole, once per machine, by whoever comes first, into a bounded cache that all processes
of the machine share (``fetch_cache``); and ahead of need by threads that ``prefetch`` is informed of.
"""

import contextlib
import os
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ccts_dist.errors import CctsError, ConfigError, FetchError, ShardError, is_first_rank
from ccts_dist.process.account import user_cache
from ccts_dist.progress import SECONDS_BETWEEN_LINES, log
from ccts_dist.shards.stores.address import is_address
from ccts_dist.shards.stores.fetch_cache import FetchCache, Refusal, Reservation, cached_name
from ccts_dist.shards.stores.retry import RetryPolicy
from ccts_dist.shards.stores.store import FetchStatistics, FileStore, LocalStore, Opened, limit_of
from ccts_dist.shards.stores.transfer import RemoteRoot, StoredFile

DEFAULT_CACHE_BYTES = 100 * 10**9
THREADS = 4
"""Transfers of one process at a time, beside those of readers that cannot wait."""

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.005, 0.2


def open_store(
    root: str | Path,
    *,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    retry_policy: RetryPolicy | None = None,
) -> FileStore:
    """The files under a folder's name or an address; whether there are any shows when they are read.

    Args:
        cache: folder for what is fetched; None for ``default_cache()``.
        cache_bytes: what it may hold; None for ``DEFAULT_CACHE_BYTES``.

    Raises:
        ConfigError: a ``pipe:`` command, an address with credentials or a query, an unknown protocol, or a cache that
            cannot be written.
    """
    text = str(root)
    if not is_address(text):
        return LocalStore(Path(root))
    place = RemoteRoot(text, retry_policy)
    folder = default_cache() if cache is None else cache
    limit = DEFAULT_CACHE_BYTES if cache_bytes is None else cache_bytes
    log(f"{place}: what is fetched is kept in {folder}, at most {limit / 1e9:g} GB", visible=is_first_rank())
    return RemoteStore(place, FetchCache(folder, limit))


def check_cache_holds(cache_bytes: int, needed_bytes: int) -> None:
    """Refuse a cache that cannot hold what is needed at a time.

    Raises:
        ConfigError: describes how much it must hold.
    """
    if needed_bytes > cache_bytes:
        raise ConfigError(
            f"data.shard_cache_gb = {cache_bytes / 1e9:g}: the shards of a window and of the next one, fetched ahead, "
            f"take {needed_bytes / 1e9:.3g} GB. Raise data.shard_cache_gb, or lower data.shuffle_buffer_size."
        )


def default_cache() -> Path:
    """Folder of fetched files unless the user sets another: in the user's cache folder."""
    return user_cache() / "ccts-dist" / "shards"


class RemoteStore:
    """Files somewhere else, through a cache on this machine."""

    def __init__(self, place: RemoteRoot, cache: FetchCache, *, threads: int = THREADS) -> None:
        self._place, self._cache, self._threads = place, cache, threads
        self._start_anew()

    def _start_anew(self) -> None:
        self._process = os.getpid()
        self._closing = threading.Event()
        self._needed: frozenset[str] = frozenset()
        self._renewed: set[str] = set()
        self._faults: dict[str, str] = {}
        self._counts = _Counts()
        self._ahead = _Prefetcher(weakref.WeakMethod(self._fetch_ahead), self._threads)
        weakref.finalize(self, self._ahead.close)  # at the latest when the interpreter ends

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_place", "_cache", "_threads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_anew()

    @property
    def words(self) -> str:
        """See ``FileStore``."""
        return self._place.words

    @property
    def root(self) -> str:
        """See ``FileStore``."""
        return self._place.words

    @property
    def statistics(self) -> FetchStatistics:
        """See ``FileStore``."""
        return self._counts.read()

    def read_bytes(self, name: str, intact: Callable[[bytes], bool] = lambda _: True) -> bytes:
        """See ``FileStore``; it is not kept in the cache."""
        with tempfile.TemporaryDirectory(prefix="ccts-") as folder:
            return self._place.read_bytes(name, Path(folder) / "file", intact, limit=limit_of(name))

    def opened(self, file: StoredFile) -> Opened:
        """See ``FileStore``; fetches the file if it is not here, or waits for whoever fetches it."""
        self._know_process()
        descriptor = self._cache.open(file)
        if descriptor is None:
            with self._counts.reader_waits():
                descriptor = self._wait_for(file, self._closing)
        return Opened(descriptor)

    def path(self, file: StoredFile) -> Path:
        """See ``FileStore``."""
        with self.opened(file):
            return self._cache.path(file)

    def discard(self, file: StoredFile, descriptor: int) -> bool:
        """See ``FileStore``."""
        with self._cache.locked():
            if not self._cache.is_current(file, descriptor):
                return True
            if cached_name(file) in self._renewed:
                return False
            self._renewed.add(cached_name(file))
            self._cache.path(file).unlink()
            return True

    def prefetch(self, files: Sequence[StoredFile]) -> None:
        """See ``FileStore``. None of these is evicted to fetch another of them ahead; readers' needs come first."""
        self._know_process()
        self._needed = frozenset(map(cached_name, files))
        self._ahead.want(files)

    def close(self) -> None:
        """See ``FileStore``."""
        self._closing.set()
        self._closing = threading.Event()
        self._ahead.close()
        self._ahead = _Prefetcher(weakref.WeakMethod(self._fetch_ahead), self._threads)
        weakref.finalize(self, self._ahead.close)

    def _know_process(self) -> None:
        if self._process != os.getpid():
            self._start_anew()  # forked: threads and locks are the parent's

    def _wait_for(self, file: StoredFile, stop: threading.Event) -> int:
        began = last_line = time.monotonic()
        look_s = _FIRST_LOOK_S
        while not stop.is_set():
            if (fault := self._faults.get(file.name)) is not None:
                raise ShardError(fault)  # asking again for each of its utterances would end the same way
            reserved = self._cache.reserve(file, keep=self._needed)
            if not isinstance(reserved, Refusal):
                if (descriptor := self._bring(file, reserved, stop)) is not None:
                    return descriptor
                break
            if (descriptor := self._cache.open(file)) is not None:
                return descriptor
            if reserved is not Refusal.HERE:  # else it was evicted this very moment
                stop.wait(look_s)
                look_s = min(_LONGEST_LOOK_S, look_s * 1.5)
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                log(f"{self.words}/{file.name}: {reserved.value}; {last_line - began:.0f} s", visible=is_first_rank())
        raise FetchError(f"{self.words}/{file.name}: not fetched, because reading was stopped. Run again.")

    def _fetch_ahead(self, file: StoredFile, stop: threading.Event) -> bool:
        """Fetch one file unless somebody has or does; False when there is no room for more."""
        if (descriptor := self._cache.open(file)) is not None:
            os.close(descriptor)
            return True
        reserved = self._cache.reserve(file, keep=self._needed, gently=True)
        if isinstance(reserved, Refusal):
            return reserved is not Refusal.FULL
        if (descriptor := self._bring(file, reserved, stop)) is not None:
            os.close(descriptor)
        return True

    def _bring(self, file: StoredFile, reserved: Reservation, stop: threading.Event) -> int | None:
        """A descriptor of a file after fetching it; None if that was stopped."""
        with reserved, self._counts.transfer():
            try:
                if not self._place.download(file, reserved.path, stop=stop):
                    return None
            except FetchError:
                raise
            except ShardError as error:
                self._faults[file.name] = str(error)
                raise
            self._counts.add(file.size_bytes)
            return reserved.publish()


class _Prefetcher:
    """Threads that fetch what will be needed; they start with the first wish and end with ``close``."""

    def __init__(
        self, fetch: "weakref.WeakMethod[Callable[[StoredFile, threading.Event], bool]]", threads: int
    ) -> None:
        self._fetch = fetch
        self._num_threads = threads
        self._threads: list[threading.Thread] = []
        self._wishes: deque[StoredFile] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()

    def want(self, files: Sequence[StoredFile]) -> None:
        with self._changed:
            self._wishes = deque(files)
            self._changed.notify_all()
            while files and len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name="shard-fetch", daemon=True)
                self._threads.append(thread)
                thread.start()

    def close(self) -> None:
        with self._changed:
            self._stop.set()
            self._wishes.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():  # which held the last reference to the store, and lets it go
                thread.join(timeout=5.0)

    def _next(self) -> StoredFile | None:
        with self._changed:
            while not self._wishes and not self._stop.is_set():
                self._changed.wait()
            return None if self._stop.is_set() else self._wishes.popleft()

    def _work(self) -> None:
        while (file := self._next()) is not None:
            fetch = self._fetch()
            if fetch is None:
                return
            with contextlib.suppress(CctsError):  # who needs the file meets the same fault, and reports it
                if not fetch(file, self._stop):
                    with self._changed:
                        self._wishes.clear()
            del fetch


class _Counts:
    """Sums, and the clocks of two activities that several threads take part in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_files = self._size_bytes = 0
        self._running = {"transfer": 0, "wait": 0}
        self._seconds = {"transfer": 0.0, "wait": 0.0}
        self._began = {"transfer": 0.0, "wait": 0.0}

    def add(self, size_bytes: int) -> None:
        with self._lock:
            self._num_files += 1
            self._size_bytes += size_bytes

    def transfer(self) -> contextlib.AbstractContextManager[None]:
        return self._runs("transfer")

    def reader_waits(self) -> contextlib.AbstractContextManager[None]:
        return self._runs("wait")

    def read(self) -> FetchStatistics:
        with self._lock:
            now = time.monotonic()
            seconds = {
                what: past + (now - self._began[what] if self._running[what] else 0.0)
                for what, past in self._seconds.items()
            }
            return FetchStatistics(
                num_files=self._num_files,
                size_bytes=self._size_bytes,
                fetching_s=seconds["transfer"],
                waiting_s=seconds["wait"],
                num_waiting=self._running["wait"],
            )

    @contextlib.contextmanager
    def _runs(self, what: str) -> Iterator[None]:
        with self._lock:
            if not self._running[what]:
                self._began[what] = time.monotonic()
            self._running[what] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[what] -= 1
                if not self._running[what]:
                    self._seconds[what] += time.monotonic() - self._began[what]
