"""A build that is written to an object store, or to whatever else fsspec opens by an address.

Files are made in a temporary folder, uploaded under their final name, and read back: size and SHA-256 are those of what
the store gives, not of what was sent. The record of a shard is uploaded after it, the manifest after everything.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ccts_dist.errors import ConfigError, MissingShardsError, ShardError
from ccts_dist.progress import log
from ccts_dist.shards.build.output import BUILDING
from ccts_dist.shards.build.plan_shards import Part
from ccts_dist.shards.format.schema import MANIFEST_NAME
from ccts_dist.shards.stores.retry import RetryPolicy
from ccts_dist.shards.stores.store import limit_of
from ccts_dist.shards.stores.transfer import RemoteRoot, fault_of

Answer = TypeVar("Answer")

_DELETED_AT_ONCE = 500

_FLAT = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2")
"""Stores that know no folders: asked to make some, they would make a bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A file to read back."""

    name: str
    size_bytes: int
    sha256: str


class AddressOutput:
    """A folder of a store, by its address; see ``Output``. Two builders are not kept apart: stores have no locks."""

    def __init__(self, root: str, retry_policy: RetryPolicy | None = None) -> None:
        """
        Raises:
            ConfigError: no address that can be written, or one that holds credentials.
        """
        self._retry_policy = retry_policy or RetryPolicy()
        self._place = RemoteRoot(root, self._retry_policy)
        protocol = root.partition("://")[0]
        if protocol in ("http", "https", "memory"):
            raise ConfigError(f"{self._place}: {protocol} cannot be built to. Name a folder, or a store such as s3://.")
        self._is_flat = protocol in _FLAT

    @property
    def where(self) -> str:
        """The address."""
        return self._place.words

    @contextmanager
    def claim(self, part: Part | None) -> Iterator[None]:
        """Only makes sure that the place can be written: that two builders of one place are no two is the user's care.

        Builders of the same input write the same bytes. One of other input is noticed when the manifest is to be
        written, at the latest.
        """
        name = f"{BUILDING}/{'whole' if part is None else f'part-{part.number}-of-{part.of}'}.claim"
        filesystem, path = self._place.connect(name)

        def write() -> None:
            if not self._is_flat:
                filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(path, b"")

        self._patiently("be written", name, write, error=ConfigError)
        yield

    def read(self, name: str) -> bytes | None:
        """See ``Output``."""
        try:
            with tempfile.TemporaryDirectory(prefix="ccts-build-") as folder:
                return self._place.read_bytes(name, Path(folder) / "file", limit=limit_of(name))
        except MissingShardsError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See ``Output``."""
        filesystem, path = self._place.connect(name)
        self._patiently("be written", name, lambda: filesystem.pipe_file(path, data))

    @contextmanager
    def workplace(self, name: str) -> Iterator[Path]:
        """A file in a temporary folder, which is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="ccts-build-") as folder:
            yield Path(folder) / name

    def publish(self, path: Path, name: str, *, size_bytes: int, sha256: str) -> str:
        """Upload, and read the whole of it back; see ``Output``."""
        filesystem, there = self._place.connect(name)
        self._patiently("be written", name, lambda: filesystem.put_file(str(path), there))
        returned = path.with_name(f"{path.name}.returned")
        self._place.download(_Sent(name=name, size_bytes=size_bytes, sha256=sha256), returned)
        returned.unlink()
        return _tag_of(self._info(name) or {})

    def holds(self, name: str, *, size_bytes: int, sha256: str, tag: str) -> bool:
        """By size and the store's tag; where it has none, by reading it all. See ``Output``."""
        info = self._info(name)
        if info is None or info.get("size") != size_bytes:
            return False
        if tag:
            return _tag_of(info) == tag
        with tempfile.TemporaryDirectory(prefix="ccts-build-") as folder:
            try:
                return self._place.download(
                    _Sent(name=name, size_bytes=size_bytes, sha256=sha256), Path(folder) / "file"
                )
            except ShardError:
                return False  # another file: it is made again

    def names(self, folder: str = "") -> list[str]:
        """See ``Output``."""
        filesystem, path = self._place.connect(folder)
        found = self._patiently("be listed", folder, lambda: filesystem.ls(path, detail=True, refresh=True), absent=[])
        return sorted(Path(str(one["name"])).name for one in found if one["type"] == "file")

    def delete(self, names: Iterable[str]) -> None:
        """See ``Output``."""
        listed = list(names)
        for first in range(0, len(listed), _DELETED_AT_ONCE):
            some = listed[first : first + _DELETED_AT_ONCE]
            self._patiently("be deleted", some[0], partial(_remove, self._place, some), absent=None)

    def clear_work(self) -> None:
        """See ``Output``. The set is complete by now: what cannot be deleted is reported, and stays."""
        try:
            self.delete(f"{BUILDING}/{name}" for name in self.names(BUILDING))
        except ShardError as error:
            log(f"{error} {self.where}/{MANIFEST_NAME} is there all the same; the records can be deleted by hand.")

    def _info(self, name: str) -> dict[str, Any] | None:
        filesystem, path = self._place.connect(name)
        filesystem.invalidate_cache()
        return self._patiently("be found", name, lambda: filesystem.info(path), absent=None)

    def _patiently(
        self,
        what: str,
        name: str,
        act: Callable[[], Answer],
        *,
        absent: Any = NotImplemented,
        error: type[ShardError] | type[ConfigError] = ShardError,
    ) -> Answer:
        """The result of ``act``, tried again while the store fails.

        Args:
            absent: the answer where the file is not there; without one that is a failure.
            error: raised where another try would end the same way.
        """
        attempt = 0
        while True:
            attempt += 1
            with ThreadPoolExecutor(1) as thread:
                future = thread.submit(act)
                failure = future.exception()
            if failure is None:
                return future.result()
            fault = fault_of(failure)
            if fault.missing and absent is not NotImplemented:
                return absent
            words = f"{self.where}/{name}: cannot {what} ({fault.words})"
            if fault.missing or fault.forbidden or fault.final:
                raise error(
                    f"{words}. See that the bucket is there, and that the environment holds credentials that may "
                    "write to it."
                )
            if attempt >= self._retry_policy.attempts:
                raise ShardError(
                    f"{words}; given up after {attempt} tries. What is finished is kept: see whether the store is up, "
                    "and run the same command again."
                )
            if attempt >= 3:  # what a second try mends is nobody's concern
                log(f"{words}; try {attempt} of {self._retry_policy.attempts}")
            time.sleep(self._retry_policy.wait_s(attempt, random.SystemRandom().random()))


def _remove(place: RemoteRoot, names: list[str]) -> None:
    """Files of one folder, which may not all be there."""
    filesystem, _ = place.connect(names[0])
    paths = [place.connect(name)[1] for name in names]
    try:
        filesystem.rm(paths)
    except FileNotFoundError:
        for path in paths:
            if filesystem.exists(path):
                filesystem.rm_file(path)


def _tag_of(info: dict[str, Any]) -> str:
    """The store's own word for the content of a file: an ETag or a checksum; empty where it has none."""
    return str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "").strip('"')
