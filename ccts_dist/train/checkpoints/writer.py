"""Checkpoints that are written beside training: a copy is taken while all ranks meet, a thread of rank 0 writes it."""

from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Protocol, runtime_checkable

from ccts_dist.distributed import Ranks, run_on_all_ranks
from ccts_dist.errors import OutputError
from ccts_dist.train.checkpoints.checkpoint import CheckpointFiles

EXIT_S = 30.0
"""Longest time that a rank on its way out after an error gives the thread to complete its checkpoint, in seconds."""


@runtime_checkable
class Copied(Protocol):
    """A copy of weights and optimizer state."""

    def write(self, folder: Path) -> Mapping[str, tuple[int, str]]:
        """Write it, synced to disk; size and SHA-256 of every file by name. Raises OutputError."""
        ...


class CheckpointWriter:
    """Writes one checkpoint at a time. Every method but ``check`` and ``close`` is called by every rank."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._writing: futures.Future[None] | None = None

    def start(self, files: CheckpointFiles, copy: Callable[[], Copied]) -> None:
        """Take the copy and begin to write it, once the checkpoint before is complete.

        Args:
            files: of the checkpoint; rank 0's are written.
            copy: called by every rank.

        Raises:
            OutputError: on all ranks alike: the checkpoint before could not be written, or this one not begun.
        """
        self.wait()
        run_on_all_ranks(lambda: self._begin(files) if self._ranks.is_first else None)
        copied = copy()
        if self._ranks.is_first:
            thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
            self._writing = thread.submit(_write, files, copied)
            thread.shutdown(wait=False)  # once it has written

    def wait(self) -> None:
        """Return when no checkpoint is being written any more, and the last one is complete.

        Raises:
            OutputError: on all ranks alike: it could not be written.
        """
        run_on_all_ranks(self._result)

    def check(self) -> None:
        """Raise on rank 0 what its thread met. Call it where an error of one rank becomes one of all.

        Raises:
            OutputError: the last checkpoint could not be written. Nothing of it is left, if that can be helped.
        """
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def close(self) -> None:
        """Give the thread time to complete its checkpoint; for a rank that leaves, which waits for no other rank."""
        if self._writing is not None:
            futures.wait([self._writing], timeout=EXIT_S)

    def _begin(self, files: CheckpointFiles) -> None:
        try:
            files.begin()
        except OutputError:
            files.discard()
            raise

    def _result(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _write(files: CheckpointFiles, copied: Copied) -> None:
    try:
        files.finish(copied.write(files.partial))
    except OutputError:
        files.discard()
        raise
