"""Ranks of one host share its cores."""

import os
from collections.abc import Iterator

import pytest
import torch

from ccts_dist.distributed import Ranks, share_cores


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[int]]]:
    """The cores that this process was bound to, which here it is not."""
    before = torch.get_num_threads()
    cores: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: cores.append(chosen))
    yield cores
    torch.set_num_threads(before)


@pytest.mark.parametrize(("on_this_host", "num_threads"), [("1", 8), ("2", 4), ("3", 2), ("8", 1), ("9", 1)])
def test_each_rank_gets_its_share_and_at_least_one(monkeypatch: pytest.MonkeyPatch, on_this_host, num_threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_SIZE", on_this_host)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    share_cores(Ranks(num_ranks=64))
    assert torch.get_num_threads() == num_threads


def test_without_a_launchers_word_all_ranks_are_on_this_host(monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    share_cores(Ranks(num_ranks=4))
    assert torch.get_num_threads() == 2


def test_number_of_threads_that_was_given_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    share_cores(Ranks(num_ranks=2))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("local_rank", "on_this_host", "chosen"),
    [(0, "4", [{2}]), (3, "4", [{9}]), (1, "3", [{3}]), (1, "2", []), (0, "1", []), (1, "5", [])],
    ids=["first", "last", "one core left over", "two cores each", "alone", "more ranks than cores"],
)
def test_rank_whose_share_is_one_core_stays_on_it(
    monkeypatch: pytest.MonkeyPatch, bound: list[set[int]], local_rank, on_this_host, chosen
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_SIZE", on_this_host)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 9})
    share_cores(Ranks(num_ranks=64, rank=8 + local_rank, local_rank=local_rank))
    assert bound == chosen
