"""What a process held at most, as the kernel counts it."""

import mmap

import numpy as np
import psutil
import pytest
import torch

from ccts_dist.train.memory.peak import (
    peak_memory_bytes,
    peak_reserved_bytes,
    peak_resident_bytes,
    peaks_over_ranks_gb,
)

MORE = 100_000_000


@pytest.mark.integration
def test_peak_grows_with_what_is_held_and_stays_when_it_is_let_go():
    before, resident = peak_resident_bytes(), psutil.Process().memory_info().rss
    assert before >= 0.99 * resident
    # Mapped, not allocated: what an allocator hands out again after a free was resident all along.
    block = np.frombuffer(mmap.mmap(-1, before - resident + MORE), dtype=np.uint8)
    block[:] = 1
    held = peak_resident_bytes()
    assert held - before == pytest.approx(MORE, rel=0.2)
    del block
    assert peak_resident_bytes() == pytest.approx(held, rel=0.01)


def test_without_a_gpu_it_is_resident_memory_in_gb_of_a_thousand_million_bytes():
    assert peak_memory_bytes(torch.device("cpu")) == peak_resident_bytes()
    assert peak_reserved_bytes(torch.device("cpu")) is None
    assert peaks_over_ranks_gb(torch.device("cpu")) == (pytest.approx(peak_resident_bytes() / 1e9, rel=0.01), None)


def test_on_a_gpu_held_and_reserved_are_what_the_allocator_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3_000_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 4_500_000_000)
    assert peaks_over_ranks_gb(torch.device("cuda", 0)) == (3.0, 4.5)
