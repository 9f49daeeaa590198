"""Out of memory on one rank: distinguished from other errors, and in words that name what to lower."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import OutOfMemoryError
from ccts_dist.records import SAMPLE_RATE_HZ

_WORDS = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|out of memory|bad_alloc|_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""Torch's allocator on the CPU, CUDA's and NCCL's, C++'s, and cuBLAS's and cuDNN's: all but CUDA's as RuntimeErrors."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation has failed, on the CPU or on a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


class MemoryWords:
    """Errors of one rank's allocations, in words: the pass, its micro-batch, and the settings to lower."""

    def __init__(self, run: RunConfig, ranks: Ranks) -> None:
        self._ranks = ranks
        self._settings = f"Lower batch.micro_batch_size ({run.batch.micro_batch_size})"
        if not run.model.gradient_checkpointing:
            self._settings += ", or set model.gradient_checkpointing = true"
        self._largest = (0, 0)

    def enter(self, rows: int, samples: int) -> None:
        """Take a micro-batch into account; the largest since ``finish`` is named."""
        self._largest = max(self._largest, (rows, samples), key=lambda shape: shape[0] * shape[1])

    def finish(self) -> None:
        """Forget the micro-batches of a step that is done."""
        self._largest = (0, 0)

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Raise out of memory within the block as ``OutOfMemoryError``; other errors as they are.

        Args:
            what: for people: "the backward pass".
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self.error(what, error) from error

    def error(self, what: str, error: BaseException) -> OutOfMemoryError:
        """An allocation that failed there, in words."""
        rows, samples = self._largest
        of = f" of a micro-batch of {rows} x {samples / SAMPLE_RATE_HZ:.1f} s" if rows else ""
        cause = " ".join(str(error).split())[:160] or type(error).__name__
        return OutOfMemoryError(f"rank {self._ranks.rank}: out of memory in {what}{of} ({cause}). {self._settings}.")
