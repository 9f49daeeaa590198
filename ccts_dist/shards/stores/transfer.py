"""One file of a store to a local path: whole, the very bytes that were asked for, tried again with patience.

What the libraries behind fsspec raise may hold signed addresses and credentials, so none of their words are passed on:
a fault is reported by its status, by the store's code for it, or by the name of its type.
"""

import asyncio
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

import fsspec
import fsspec.config
from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.callbacks import Callback

from ccts_dist.errors import ConfigError, FetchError, MissingShardsError, ShardError, is_first_rank
from ccts_dist.limits import LIMITS
from ccts_dist.progress import log
from ccts_dist.shards.stores.address import check_address
from ccts_dist.shards.stores.retry import RetryPolicy

_CHUNK_BYTES = 1 << 20
_LOOK_S = 0.5
_BUGS = (TypeError, AttributeError, LookupError, NameError, AssertionError, MemoryError, NotImplementedError)
_NOT_NOW = (408, 425, 429)
"""The only 4xx that pass by themselves: too slow, too early, too many."""
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9.]{1,60}")


@runtime_checkable
class StoredFile(Protocol):
    """The manifest's record of a file: enough to fetch it and to know it again."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a try failed."""

    words: str
    final: bool = False
    """Another try would end the same way."""

    missing: bool = False
    found: str = ""
    """The digest or size that came, where the file came whole and is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFault:
    """Kind of a store's error."""

    words: str
    """That may be reported of it; hold no secret."""

    missing: bool
    forbidden: bool
    final: bool
    """For another reason, another try would end the same way."""


class RemoteRoot:
    """A folder or bucket somewhere else, by its address. Can be pickled; each process connects for itself.

    Credentials belong in the environment or in fsspec's configuration. An address that carries some is refused.
    """

    def __init__(self, root: str, retry_policy: RetryPolicy | None = None) -> None:
        """
        Raises:
            ConfigError: no address that can be read: a command, credentials or a query in it, an unknown protocol.
        """
        self.words = check_address(root)
        """The address, for people."""
        self._protocol = root.partition("://")[0]
        self._retry_policy = retry_policy or RetryPolicy()

    def __str__(self) -> str:
        return self.words

    def download(self, file: StoredFile, target: Path, *, stop: threading.Event | None = None) -> bool:
        """Bring a file to ``target``, whose folder exists; verified by size and SHA-256.

        Args:
            stop: when it is set, the transfer is given up.

        Returns:
            False if it was stopped.

        Raises:
            ShardError: the store has no such file, or another one under this name; names what, or both digests.
            FetchError: the store does not give it.
        """

        def verify(announced: int | None) -> _Fault | None:
            if (size := target.stat().st_size) != file.size_bytes:
                found = str(size) if size == announced else ""  # else it was cut on its way
                return _Fault(f"has {size} bytes, and the manifest states {file.size_bytes}", found=found)
            return _digest_fault(target, file.sha256)

        return self._patiently(file.name, target, file.size_bytes, verify, stop or threading.Event())

    def read_bytes(
        self,
        name: str,
        target: Path,
        intact: Callable[[bytes], bool] = lambda _: True,
        *,
        limit: str = "record of a build",
    ) -> bytes:
        """A small file. It passes through ``target``, which is removed.

        Args:
            intact: whether its bytes are good. Others are asked for again, and returned when they come twice: then the
                store holds them so, and the caller knows best what is wrong with them.
            limit: of its bytes, a key of ``limits.LIMITS``. A store may send without end.

        Raises:
            MissingShardsError: it is not there, may not be read, or is larger.
            FetchError: the store did not give it, however often it was asked.
        """
        come = set[bytes]()

        def verify(announced: int | None) -> _Fault | None:
            size = target.stat().st_size
            if announced not in (None, size):
                return _Fault(f"came with {size} of {announced} bytes")
            data = target.read_bytes()
            if intact(data) or data in come:
                return None
            come.add(data)
            return _Fault("came damaged")

        try:
            stop = threading.Event()
            self._patiently(name, target, None, verify, stop, refused=MissingShardsError, most=LIMITS[limit])
            return target.read_bytes()
        finally:
            target.unlink(missing_ok=True)

    def connect(self, name: str) -> tuple[Any, str]:
        """The file system, and what a file is called on it.

        Raises:
            ConfigError: fsspec knows the protocol, and makes no file system of such an address.
            FetchError: it connects at once, and cannot.
        """
        try:
            return fsspec.core.url_to_fs(self._address(name), **self._options())
        except OSError as error:  # in words that hold no secret
            raise FetchError(
                f"{self.words}: cannot be reached ({type(error).__name__}). Is it the right place?"
            ) from error
        except (ValueError, TypeError, AttributeError, LookupError, ImportError, RuntimeError) as error:
            raise ConfigError(
                f"{self.words}: cannot be opened by its address alone ({type(error).__name__}). Known: s3, gs, http, "
                "https and what else fsspec opens so."
            ) from error

    def _patiently(
        self,
        name: str,
        target: Path,
        size: int | None,
        verify: Callable[[int | None], _Fault | None],
        stop: threading.Event,
        *,
        refused: type[ShardError] | None = None,
        most: int | None = None,
    ) -> bool:
        retry_policy, others = self._retry_policy, set[str]()
        attempt = 0
        while True:
            attempt += 1
            throughput = _Throughput(size, most)
            fault = self._try(name, target, throughput, stop)
            if stop.is_set():
                return False
            fault = fault or verify(throughput.announced)
            if fault is None:
                return True
            words = f"{self.words}/{name}: {fault.words}"
            if fault.final:
                raise (refused or (ShardError if fault.missing else FetchError))(words)
            if fault.found and fault.found in others:
                raise ShardError(
                    f"{words}; it came so twice. The store holds another file under this name: upload the shard set "
                    "again, or build it again."
                )
            others.add(fault.found)
            if attempt >= retry_policy.attempts:
                raise FetchError(
                    f"{words}; given up after {attempt} tries. See whether the store is up, and run again."
                )
            if attempt >= 3:  # what a second try mends is nobody's concern
                log(f"{words}; try {attempt} of {retry_policy.attempts}", visible=is_first_rank())
            stop.wait(retry_policy.wait_s(attempt, random.SystemRandom().random()))

    def _try(self, name: str, target: Path, throughput: "_Throughput", stop: threading.Event) -> _Fault | None:
        filesystem, path = self.connect(name)
        ended = threading.Event()
        if isinstance(filesystem, AsyncFileSystem):
            work = _signal_end(filesystem._get_file(path, str(target), callback=throughput), ended)
            loop = filesystem.loop
        else:
            work = _signal_end(asyncio.to_thread(_copy, filesystem, path, target, throughput), ended)
            loop = get_loop()
        assert loop is not None, "fsspec runs one in a thread"
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            if not self._wait_for(future, throughput, stop):
                return _Fault(f"brought no byte for {self._retry_policy.stall_s:g} s")
        finally:
            throughput.stopped = True
            future.cancel()
            ended.wait(_LOOK_S * 4)  # until nobody writes to ``target`` any more
        error = future.exception()
        if isinstance(error, _TooLargeError):
            return _Fault(f"{error}. Name the place where a shard set or teacher cache lies.", final=True)
        if isinstance(error, _WrongLengthError):
            return _Fault(str(error), found=str(throughput.announced))
        return None if error is None else _fault_of(error, target)

    def _wait_for(self, future: "Future[None]", throughput: "_Throughput", stop: threading.Event) -> bool:
        while not future.done():
            wait([future], timeout=min(_LOOK_S, self._retry_policy.stall_s / 4))
            if stop.is_set() or (
                not future.done() and time.monotonic() - throughput.last_byte > self._retry_policy.stall_s
            ):
                return False
        return True

    def _address(self, name: str) -> str:
        # Names have % in them, which a web server would undo; object stores take an address as it stands.
        return f"{self.words}/{quote(name) if self._protocol in ('http', 'https') else name}"

    def _options(self) -> dict[str, Any]:
        """How to open the file system, beside what fsspec's configuration states."""
        own = fsspec.config.conf.get(self._protocol, {})
        stall_s = self._retry_policy.stall_s
        if self._protocol in ("s3", "s3a"):
            # One stream per file: several would be held in memory in parts of 50 MB. Tries are counted here alone.
            times = {"connect_timeout": min(10.0, stall_s), "read_timeout": min(15.0, stall_s / 2)}
            config = {**times, "retries": {"total_max_attempts": 1}, "max_pool_connections": 64}
            return {"max_concurrency": 1, "config_kwargs": {**config, **own.get("config_kwargs", {})}}
        if self._protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            # aiohttp gives up after five minutes in all; and a compressed answer would have another length.
            client = {
                "timeout": ClientTimeout(total=None, sock_connect=min(10.0, stall_s), sock_read=stall_s),
                "headers": {"Accept-Encoding": "identity"},
                "trust_env": True,
            }
            return {"client_kwargs": {**client, **own.get("client_kwargs", {})}}
        return {}


class _WrongLengthError(OSError):
    """The store announces a file of another length."""


class _TooLargeError(OSError):
    """The store sends more than a small file has."""


class _Throughput(Callback):
    """Counts what comes, and stops what should not come.

    Args:
        wanted: bytes that must come; None where they are not known.
        most: bytes that may come.
    """

    def __init__(self, wanted: int | None, most: int | None = None) -> None:
        super().__init__()
        self.announced: int | None = None
        self.last_byte = time.monotonic()
        self.stopped = False
        self._wanted, self._most, self._come = wanted, most, 0

    def set_size(self, size: int | None) -> None:
        self.announced = size
        self.last_byte = time.monotonic()

    def relative_update(self, inc: int = 1) -> None:
        if self.stopped:
            raise OSError("given up")
        self._come += inc
        if inc:
            self.last_byte = time.monotonic()
        found = max(self._come, self.announced or 0)
        if self._most is not None and found > self._most:
            raise _TooLargeError(f"has more than {self._most:,} bytes, the most that such a file may have")
        if self._wanted is not None and (found > self._wanted or self.announced not in (None, self._wanted)):
            raise _WrongLengthError(f"has {found} bytes, and the manifest states {self._wanted}")


def _digest_fault(target: Path, sha256: str) -> _Fault | None:
    with open(target, "rb") as got:
        found = hashlib.file_digest(got, "sha256").hexdigest()
    if found == sha256:
        return None
    return _Fault(f"is {found[:12]}, and the manifest states {sha256[:12]}", found=found)


async def _signal_end(work: Coroutine[Any, Any, None], ended: threading.Event) -> None:
    try:
        await work
    finally:
        ended.set()


def _copy(filesystem: Any, path: str, target: Path, throughput: _Throughput) -> None:
    """A transfer from a file system that knows no other way; runs in a thread."""
    with filesystem.open(path, "rb") as source, open(target, "wb") as out:
        throughput.set_size(getattr(source, "size", None))
        while chunk := source.read(_CHUNK_BYTES):
            throughput.relative_update(len(chunk))
            out.write(chunk)


def _fault_of(error: BaseException, target: Path) -> _Fault:
    """Meaning of an error for the next try, in words that hold no secret."""
    fault = fault_of(error)
    number = getattr(error, "errno", None)
    if number in (ENOSPC, EDQUOT, EROFS) or (number == EACCES and getattr(error, "filename", None) == str(target)):
        why = os.strerror(number or 0).lower()
        return _Fault(
            f"cannot be kept ({why} in {target.parent}). Make room, lower data.shard_cache_gb, or name another "
            "folder in data.shard_cache.",
            final=True,
        )
    if fault.missing:
        return _Fault(
            f"is not there ({fault.words}). Name the place where the shard set or teacher cache lies.",
            final=True,
            missing=True,
        )
    if fault.forbidden:
        return _Fault(
            f"may not be read ({fault.words}). Give credentials for it in the environment or in fsspec's "
            "configuration.",
            final=True,
        )
    if isinstance(error, TimeoutError):
        return _Fault("timed out")
    return _Fault(f"did not come ({fault.words})", final=fault.final)


def fault_of(error: BaseException) -> StoreFault:
    """Meaning of a store's error, and what may be reported of it: its status, its code or its kind."""
    if isinstance(error, _BUGS):
        raise error
    status, code = _status_of(error)
    words = " ".join(word for word in (f"HTTP {status}" if status else "", code) if word) or type(error).__name__
    forbidden = isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__
    # aiohttp states 400 of an answer that it could not read, too; S3's own has a code.
    refused = status is not None and (400 < status < 500 or (status == 400 and code)) and status not in _NOT_NOW
    return StoreFault(
        words=words,
        missing=isinstance(error, FileNotFoundError) or status == 404,
        forbidden=forbidden,
        final=bool(refused) or isinstance(error, ValueError),
    )


def _status_of(error: BaseException) -> tuple[int | None, str]:
    """The HTTP status of an error and the store's own code for it, where the libraries report them."""
    for fault in (error, error.__cause__):
        if isinstance(response := getattr(fault, "response", None), dict):  # botocore, perhaps below s3fs
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, code if _CODE.fullmatch(code) else ""
    for name in ("status", "status_code", "code"):  # aiohttp, Azure, Google; not of causes, which number otherwise
        if isinstance(status := getattr(error, name, None), int):
            return status, ""
    return None, ""
