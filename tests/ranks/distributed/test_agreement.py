"""What goes wrong on one rank goes wrong on all, with the same words."""

from collections.abc import Iterator

import pytest
from torch.distributed import DistBackendError

from ccts_dist.distributed import (
    PendingResult,
    Ranks,
    agree_on_nodes,
    agree_or_raise,
    broadcast_object,
    capture,
    gather_objects,
    is_lost_connection,
    limit_waiting,
    lockstep,
    rank_facts,
    run_on_all_ranks,
    sum_over_ranks,
)
from ccts_dist.errors import CctsError, ShardError, TeacherError
from ccts_dist.process.seeds import derive_seed
from tests.helpers.ranks.processes import end_ranks, run_on_ranks


def settle(ballot: PendingResult[int]) -> tuple[int, bool]:
    """With votes that rode along with something else."""
    return ballot.settle(*sum_over_ranks(ballot.votes).tolist())


def try_everything() -> dict[str, object]:
    import torch

    rank = rank_facts().rank
    reported: dict[str, object] = {}
    agree_or_raise(None)
    for name, guilty in (("second", {1}), ("both", {0, 1})):
        try:
            agree_or_raise(ShardError(f"rank {rank} fell") if rank in guilty else None)
        except CctsError as error:
            reported[name] = (type(error).__name__, str(error))

    def open_something() -> int:
        if rank == 0:
            raise TeacherError("no cache")
        return 3

    try:
        run_on_all_ranks(open_something)
    except CctsError as error:
        reported["together"] = (type(error).__name__, str(error))
    reported["answer"] = run_on_all_ranks(lambda: rank + 10)
    try:
        settle(capture(open_something))
    except CctsError as error:
        reported["later"] = (type(error).__name__, str(error))

    def read() -> Iterator[int]:
        yield 0
        yield 1
        if rank == 1:
            raise ShardError("damaged")
        yield 2

    seen = []
    try:
        for number in lockstep(read(), 3):
            seen.append(number)  # noqa: PERF402
    except CctsError as error:
        reported["in step"] = (seen, str(error))
    checked = []

    def check() -> None:
        checked.append(rank)
        if len(checked) == 3 and rank == 1:
            raise ShardError("asked on the second rank")

    try:
        list(lockstep(iter(range(5)), 5, check=check))
    except CctsError as error:
        reported["checked"] = (len(checked), str(error))
    reported["wishes"] = [settle(capture(lambda: rank, wish=wish)) for wish in (False, rank == 1)]
    reported["sum"] = sum_over_ranks(torch.tensor([1.0, float(rank)], dtype=torch.float64)).tolist()
    reported["gathered"] = gather_objects(f"from {rank}")
    reported["broadcast"] = broadcast_object(f"from {rank}")
    even = Ranks(rank=rank, num_ranks=2, num_nodes=2)
    reported["even hosts"] = agree_on_nodes(even).num_nodes
    reported["uneven hosts"] = agree_on_nodes(even if rank else Ranks(rank=rank, num_ranks=2)).num_nodes
    return reported


def test_errors_of_one_rank_are_raised_on_all_with_the_same_words():
    for rank, reported in enumerate(run_on_ranks(try_everything, 2)):
        assert reported["second"] == ("ShardError", "rank 1 fell")
        assert reported["both"] == ("ShardError", "rank 0 fell")
        assert reported["together"] == ("TeacherError", "no cache")
        assert reported["later"] == ("TeacherError", "no cache")
        assert reported["answer"] == rank + 10
        assert reported["checked"] == (3, "asked on the second rank")
        assert reported["wishes"] == [(rank, False), (rank, True)]
        assert reported["in step"] == ([0, 1], "damaged")
        assert reported["sum"] == [2.0, 1.0]
        assert reported["gathered"] == ["from 0", "from 1"]
        assert reported["broadcast"] == "from 0"
        assert (reported["even hosts"], reported["uneven hosts"]) == (2, 1)


def wait_in_a_library_group() -> float:
    """Seconds that a rank waits for a peer that does not come, in a group made without a time-out of its own."""
    import time

    import torch
    import torch.distributed as dist

    group = dist.new_group([0, 1])
    limit_waiting(2.0)
    began = time.monotonic()
    if rank_facts().rank == 0:
        with pytest.raises(RuntimeError) as raised:
            dist.all_reduce(torch.ones(1), group=group)
        assert is_lost_connection(raised.value)
    else:
        time.sleep(3.0)
    waited_s = time.monotonic() - began
    limit_waiting(60.0)
    return waited_s


def test_time_out_holds_in_groups_that_a_library_made():
    assert run_on_ranks(wait_in_a_library_group, 2)[0] < 20


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:21314", True),
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Read error [10.0.0.7]:1: Connection reset", True),
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/buffer.cc:72] Timed out waiting 2000ms for send", True),
        ("Gloo connectFullMesh failed with [gloo/transport/tcp/device.cc:208] timeout", True),
        (
            "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:454] op.length <= op.nbytes. 8 vs 4",
            False,
        ),
        ("ProcessGroupGloo::allreduce: unsupported device type", False),
        ("No backend type associated with device type cuda", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_lost_connections_are_reported_from_mistakes_of_a_program(words: str, is_lost: bool):
    assert is_lost_connection(RuntimeError(words)) is is_lost


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [
        ("NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error", True),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran for 60000 milliseconds", True),
        ("NCCL error in: ProcessGroupNCCL.cpp:1, invalid argument, NCCL version 2.27", False),
        ("NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error, NCCL version 2.27", False),
    ],
)
def test_mistakes_that_nccl_reports_are_no_lost_ranks(words: str, is_lost: bool):
    assert is_lost_connection(DistBackendError(words)) is is_lost


def meet_without_local_ranks() -> None:
    """As in pods of a PyTorchJob, here on one host."""
    import os

    from ccts_dist.distributed import process_group
    from ccts_dist.ranks import ranks_of_this_host

    del os.environ["LOCAL_RANK"]
    with process_group(rank_facts(), timeout_s=60.0) as ranks:
        seen = (ranks.local_rank, ranks.num_nodes, ranks_of_this_host(ranks), rank_facts() == ranks)
        assert seen == (ranks.rank, 1, 2, True), seen
        assert gather_objects(os.environ["LOCAL_RANK"]) == ["0", "1"]


def test_ranks_without_a_word_on_local_ranks_count_themselves_by_host(tmp_path):
    codes, words = end_ranks(meet_without_local_ranks, 2, place=tmp_path, grouped=False)
    assert codes == [0, 0], words


@pytest.mark.parametrize(
    ("reported", "num_nodes"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "CROSS_SIZE": "2", "LOCAL_SIZE": "2"}, 2),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "CROSS_SIZE": "2", "LOCAL_SIZE": "1"}, 1),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1),
        ({}, 1),
    ],
)
def test_hosts_are_counted_as_the_launcher_reports_where_they_have_equally_many_ranks(monkeypatch, reported, num_nodes):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "CROSS_SIZE",
        "LOCAL_SIZE",
        "GROUP_WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in reported.items():
        monkeypatch.setenv(name, value)
    assert rank_facts().num_nodes == num_nodes


def test_seed_depends_on_every_part_in_order_and_never_changes():
    assert derive_seed("forward", 1, 2) == derive_seed("forward", 1, 2)
    assert len({derive_seed(*parts) for parts in (("a", 1, 2), ("a", 2, 1), ("a", 12), ("b", 1, 2))}) == 4
    assert 0 <= derive_seed("x") < 2**63
    # Frozen: another value would reorder every existing run.
    assert derive_seed("order", 17, 0) == 630560852965997234
