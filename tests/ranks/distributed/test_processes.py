import os
import subprocess
import sys
import time

import pytest

from ccts_dist.distributed import gather_objects, rank_facts
from tests.helpers.processes.launching import ROOT, environment
from tests.helpers.ranks.processes import run_on_ranks


def ranks_of_all() -> list[int]:
    return gather_objects(rank_facts().rank)


def raise_on_second_rank() -> None:
    if rank_facts().rank == 1:
        raise ValueError("the second rank's words")
    gather_objects(0)


def die_on_second_rank() -> None:
    if rank_facts().rank == 1:
        os._exit(7)
    gather_objects(0)


def sleep_on_second_rank() -> None:
    if rank_facts().rank == 1:
        time.sleep(600)


def test_every_rank_answers():
    assert run_on_ranks(ranks_of_all, 2) == [[0, 1]] * 2


def test_exception_of_any_rank_fails_with_its_words():
    with pytest.raises(AssertionError, match="the second rank's words"):
        run_on_ranks(raise_on_second_rank, 2)


def test_exit_code_of_any_rank_is_read():
    with pytest.raises(AssertionError, match="rank 1: exit code 7"):
        run_on_ranks(die_on_second_rank, 2)


def test_rank_that_does_not_end_in_time_fails():
    with pytest.raises(AssertionError, match="rank 1: exit code -9, did not end in time"):
        run_on_ranks(sleep_on_second_rank, 2, timeout_s=5.0)


def test_ranks_that_leave_right_after_a_collective_keep_their_exit_code():
    """Without ``leave`` every fourth rank or so aborts here: a thread of gloo meets the end of the interpreter."""
    done = subprocess.run(
        [sys.executable, "tests/ranks/distributed/leave_at_once.py", "16"],
        cwd=ROOT, env=environment({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["0"] * 32, done.stderr
