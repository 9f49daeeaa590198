"""Output of a build: a local folder here, an object store in ``output_remote``."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from ccts_dist.errors import ConfigError
from ccts_dist.files.atomic import atomic_write, file_sha256
from ccts_dist.files.locking import lock
from ccts_dist.shards.build.plan_shards import Part
from ccts_dist.shards.stores.remote import is_address

BUILDING = ".building"
"""Folder of the builder's records, within the shard set's; gone when the set is finished."""


@runtime_checkable
class Output(Protocol):
    """A place for the files of a shard set. Names are relative to it, with "/" between folders.

    Can be pickled: each process that makes shards gets a copy.
    """

    @property
    def where(self) -> str:
        """The place, for people; bears no credentials."""
        ...

    def claim(self, part: Part | None) -> AbstractContextManager[None]:
        """Keep other builders out, for as long as the block runs: every other one, or those of the same part.

        Raises:
            ConfigError: another builder is at work here, or nothing can be written here.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A small file; None if there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a small file there, whole or not at all."""
        ...

    def workplace(self, name: str) -> AbstractContextManager[Path]:
        """A local path under which to make the file that will be published as ``name``."""
        ...

    def publish(self, path: Path, name: str, *, size_bytes: int, sha256: str) -> str:
        """Bring a file that was made in its workplace under its name, and make sure that it arrived.

        Returns:
            What the place calls this content (an ETag), or nothing.

        Raises:
            ShardError: what arrived is something else.
        """
        ...

    def holds(self, name: str, *, size_bytes: int, sha256: str, tag: str) -> bool:
        """True when ``name`` is there with this content. Reads it, unless the place has a word for it (``tag``)."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """The files of a folder, sorted."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are no fault."""
        ...

    def clear_work(self) -> None:
        """Remove the builder's records, and whatever a killed builder left half written."""
        ...


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """A folder on a file system that all builders share."""

    root: Path

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

    @contextmanager
    def claim(self, part: Part | None) -> Iterator[None]:
        """By locks, which the system takes away from a builder that dies; see ``Output``."""
        folder = self.root / BUILDING
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.root}: cannot be made ({error.strerror}). Name another folder with --out."
            ) from error
        with open(folder / "lock", "a+b") as whole:
            self._lock(whole, "another builder", shared=part is not None)
            if part is None:
                yield
                return
            with open(folder / f"part-{part.number}-of-{part.of}.lock", "a+b") as own:
                self._lock(own, f"another builder of part {part}")
                yield

    def _lock(self, file: BinaryIO, who: str, *, shared: bool = False) -> None:
        if not lock(file, shared=shared):
            raise ConfigError(f"{self.root}: {who} is at work here. Wait for it, or name another folder.")

    def read(self, name: str) -> bytes | None:
        """See ``Output``."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See ``Output``."""
        atomic_write(self.root / name, data, shared=True)  # parts write the plan at the same time

    @contextmanager
    def workplace(self, name: str) -> Iterator[Path]:
        """The place itself: what writes there must write whole files."""
        yield self.root / name

    def publish(self, path: Path, name: str, *, size_bytes: int, sha256: str) -> str:
        """Nothing to do: it was made in its place, and synced to disk before it got its name."""
        assert path == self.root / name
        return ""

    def holds(self, name: str, *, size_bytes: int, sha256: str, tag: str) -> bool:
        """See ``Output``; reads every byte."""
        path = self.root / name
        return path.is_file() and path.stat().st_size == size_bytes and file_sha256(path) == sha256

    def names(self, folder: str = "") -> list[str]:
        """See ``Output``."""
        where = self.root / folder
        return sorted(path.name for path in where.iterdir() if path.is_file()) if where.is_dir() else []

    def delete(self, names: Iterable[str]) -> None:
        """See ``Output``."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def clear_work(self) -> None:
        """See ``Output``."""
        self.delete(path.name for path in self.root.glob(".*.partial"))
        shutil.rmtree(self.root / BUILDING, ignore_errors=True)


def open_output(out: str | Path) -> Output:
    """The place where a build is written: a folder, or what fsspec opens by an address.

    Raises:
        ConfigError: nothing can be written there, or an address that holds credentials.
    """
    if is_address(out):
        from ccts_dist.shards.build.output_remote import AddressOutput  # needs this module's names

        if not str(out).startswith("file://"):
            return AddressOutput(str(out))
        out = str(out).removeprefix("file://")
    there = next(place for place in (Path(out), *Path(out).absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{out}: {there} is a file, not a folder. Name another folder with --out.")
    return FolderOutput(Path(out))
