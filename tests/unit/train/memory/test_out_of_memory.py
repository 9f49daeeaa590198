"""Errors that are out of memory, and their words."""

from pathlib import Path

import pytest
import torch

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import OutOfMemoryError
from ccts_dist.train.memory.out_of_memory import MemoryWords, is_out_of_memory
from tests.helpers.processes.small_runs import write_run


def refused_allocation() -> RuntimeError:
    """What torch raises for a pebibyte."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, dtype=torch.uint8)
    return raised.value


@pytest.fixture
def words(tmp_path: Path) -> MemoryWords:
    config = write_run(tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run", batch={"micro_batch_size": 7})
    return MemoryWords(read_run(config, []), Ranks(rank=3, num_ranks=8))


def test_allocation_that_fails_is_out_of_memory_whoever_refuses_it():
    assert is_out_of_memory(refused_allocation())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))


def test_other_errors_are_not():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(OSError(12, "Cannot allocate memory"))


def test_words_name_rank_pass_largest_micro_batch_and_settings(words: MemoryWords):
    words.enter(7, 160_000)
    words.enter(2, 176_000)
    with pytest.raises(OutOfMemoryError) as raised, words.named("the backward pass"):
        raise torch.OutOfMemoryError("CUDA out of memory.  Tried to allocate\n2.00 GiB")
    assert str(raised.value) == (
        "rank 3: out of memory in the backward pass of a micro-batch of 7 x 10.0 s (CUDA out of memory. Tried to "
        "allocate 2.00 GiB). Lower batch.micro_batch_size (7), or set model.gradient_checkpointing = true."
    )
    assert raised.value.exit_code == 1


def test_micro_batches_of_an_earlier_step_are_forgotten(words: MemoryWords):
    words.enter(7, 160_000)
    words.finish()
    assert "micro-batch of" not in str(words.error("the optimizer's step", MemoryError()))


def test_other_errors_pass_as_they_are(words: MemoryWords):
    with pytest.raises(RuntimeError, match=r"^shapes$"), words.named("the forward pass"):
        raise RuntimeError("shapes")
