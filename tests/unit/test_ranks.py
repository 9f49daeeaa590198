"""Ranks find their hosts and their GPUs by what each of them sees."""

import json
import os
from dataclasses import asdict, replace
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import TCPStore

from ccts_dist.errors import ConfigError, PortTakenError, run_main
from ccts_dist.ranks import (
    BACKEND,
    Ranks,
    Seat,
    _are_strangers,
    _Job,
    _own_job,
    chosen_backend,
    meet,
    take_seats,
)


def seat(host: str = "a", **changes: object) -> Seat:
    return replace(Seat(host=host, local_rank=None, local_size=None, num_nodes=None, num_gpus=0), **changes)


def launched(*sizes: int, **changes: object) -> list[Seat]:
    """Seats of hosts with so many ranks each, by the word of a launcher that reports all."""
    return [
        seat(f"host{number}", local_rank=rank, local_size=size, num_nodes=len(sizes), **changes)
        for number, size in enumerate(sizes)
        for rank in range(size)
    ]


def facts(seats: list[Seat], backend: str = "nccl") -> list[tuple[int, int, int | None, int]]:
    """Of each rank: local rank, hosts, GPU, ranks on its host."""
    found = []
    for rank, own in enumerate(seats):
        start = Ranks(rank=rank, num_ranks=len(seats), local_rank=own.local_rank or 0)
        ranks, on_this_host = take_seats(start, seats, backend=backend)
        assert (ranks.rank, ranks.num_ranks) == (rank, len(seats))
        found.append((ranks.local_rank, ranks.num_nodes, ranks.gpu, on_this_host))
    return found


def test_pods_without_a_word_on_local_ranks_are_hosts_of_their_own():
    assert facts([seat(f"pod-{number}", num_gpus=1, gpu=f"GPU-{number}") for number in range(3)]) == [
        (0, 3, 0, 1), (0, 3, 0, 1), (0, 3, 0, 1),
    ]  # fmt: skip


def test_ranks_that_share_a_name_share_a_host():
    assert facts([seat("a"), seat("a"), seat("b"), seat("b")]) == [
        (0, 2, None, 2), (1, 2, None, 2), (0, 2, None, 2), (1, 2, None, 2),
    ]  # fmt: skip


def test_uneven_or_mixed_hosts_count_as_one():
    assert [found[1] for found in facts([seat("a"), seat("a"), seat("b")])] == [1, 1, 1]
    assert [found[1] for found in facts([seat("a"), seat("b"), seat("a"), seat("b")])] == [1, 1, 1, 1]


def test_number_of_hosts_is_counted_where_mpirun_does_not_report_it():
    seats = [replace(one, num_nodes=None) for one in launched(2, 2)]
    assert [found[:2] for found in facts(seats)] == [(0, 2), (1, 2), (0, 2), (1, 2)]


def test_what_the_launcher_reports_goes_before_names_of_hosts():
    seats = [replace(one, host="localhost") for one in launched(2, 2)]
    assert facts(seats) == [(0, 2, None, 2), (1, 2, None, 2), (0, 2, None, 2), (1, 2, None, 2)]


def test_each_rank_takes_the_gpu_of_its_number():
    assert [found[2] for found in facts(launched(2, 2, num_gpus=4))] == [0, 1, 0, 1]


def test_rank_that_sees_one_gpu_of_its_own_takes_that_and_keeps_its_number():
    """As under --gpus-per-task=1, or in a container for each rank."""
    seats = [replace(one, gpu=f"GPU-{number}") for number, one in enumerate(launched(2, 2, num_gpus=1))]
    assert facts(seats) == [(0, 2, 0, 2), (1, 2, 0, 2), (0, 2, 0, 2), (1, 2, 0, 2)]


@pytest.mark.parametrize(("num_gpus", "gpus"), [(1, "1 GPU,"), (3, "3 GPUs,")])
def test_more_ranks_than_gpus_are_refused_on_every_rank_in_one_line(num_gpus, gpus):
    seats = launched(4, 4, num_gpus=4)
    seats[4:] = [replace(one, num_gpus=num_gpus, gpu="GPU-7" * (num_gpus == 1)) for one in seats[4:]]
    words = set()
    for rank in range(8):
        with pytest.raises(ConfigError) as raised:
            take_seats(Ranks(rank=rank, num_ranks=8), seats, backend="nccl")
        words.add(str(raised.value))
    assert words == {
        f"host1 has 4 ranks and {gpus} and each rank needs one. Start {num_gpus} on it (deepspeed --num_gpus "
        f"{num_gpus}, srun --ntasks-per-node={num_gpus}), or set CCTS_BACKEND=gloo to let ranks share a GPU."
    }


def test_ranks_share_gpus_in_turn_over_gloo():
    assert [found[2] for found in facts(launched(3, num_gpus=2), "gloo")] == [0, 1, 0]


def test_rank_without_a_gpu_beside_one_with_is_refused():
    seats = launched(1, 1, num_gpus=1)
    with pytest.raises(
        ConfigError, match=r"^rank 1 on host1 sees no GPU, and rank 0 on host0 does\. Give each rank one"
    ):
        take_seats(Ranks(num_ranks=2), [seats[0], replace(seats[1], num_gpus=0)], backend="nccl")


def test_backend_is_chosen_by_the_device_and_by_the_switch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(BACKEND, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert chosen_backend() == "gloo"
    monkeypatch.setenv(BACKEND, "nccl")
    with pytest.raises(ConfigError, match=r"^CCTS_BACKEND = 'nccl': torch sees no GPU"):
        chosen_backend()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert chosen_backend() == "nccl"
    monkeypatch.setenv(BACKEND, "gloo")
    assert chosen_backend() == "gloo"
    monkeypatch.setenv(BACKEND, "mpi")
    with pytest.raises(ConfigError, match=r'must be "gloo" or "nccl"\. Unset it'):
        chosen_backend()


@pytest.fixture
def job_before(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of another job on this host, whose two ranks have met, at the port that is this job's too."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    for rank in (0, 1):
        store.add(f"ccts/arrived/{rank}", 1)
        store.set(f"ccts/seat/{rank}", json.dumps(asdict(seat(local_rank=rank, local_size=2, num_nodes=1))))
    store.set("ccts/job", json.dumps(asdict(_own_job())))  # the same command, so that only its place reports
    monkeypatch.setattr("ccts_dist.errors._SPEAK_S", 0.0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return store


@pytest.mark.parametrize("rank", [0, 1])
def test_second_job_on_a_host_is_reported_of_the_port_and_joins_no_stranger(
    rank: int, job_before: TCPStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", str(rank))
    seat_before = job_before.get(f"ccts/seat/{rank}")

    def main(_: list[str] | None) -> int:
        meet(Ranks(rank=rank, num_ranks=2), backend="gloo", timeout_s=20.0)
        return 0

    assert run_main(main) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {rank} of 2: port {job_before.port} at 127.0.0.1 is another job's. ")
    assert "deepspeed --master_port N" in line
    assert job_before.get(f"ccts/seat/{rank}") == seat_before
    assert issubclass(PortTakenError, ConfigError)


def test_rank_that_comes_before_the_first_jobs_own_leaves_it_its_place(
    job_before: TCPStore, monkeypatch: pytest.MonkeyPatch
):
    """Jobs that begin at the same moment: the first job's rank 1 is still on its way, and this one is a stranger."""
    monkeypatch.setenv("RANK", "1")
    other = replace(_own_job(), parent=os.getppid() + 1, options="0" * 64)
    job_before.set("ccts/job", json.dumps(asdict(other)))
    job_before.delete_key("ccts/arrived/1")
    with pytest.raises(PortTakenError, match=f"port {job_before.port} at 127.0.0.1 is another job's"):
        meet(Ranks(rank=1, num_ranks=2), backend="gloo", timeout_s=20.0)
    assert not job_before.check(["ccts/arrived/1"])


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"parent": 2, "options": "b"}, True),
        ({"options": "b"}, False),  # one launcher gives each rank options of its own
        ({"parent": 2}, False),  # started by hand, from two shells
        ({"parent": 2, "options": "b", "host": "other"}, False),
    ],
)
def test_strangers_differ_in_launcher_and_options_on_one_host(facts: dict, expected: bool):
    job = _Job(host="here", parent=1, options="a")
    assert _are_strangers(replace(job, **facts), job) is expected


def test_the_launchers_own_option_is_no_part_of_a_jobs_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--local_rank=0", "--config", "a.toml"])
    first = _own_job()
    monkeypatch.setattr("sys.argv", ["train.py", "--local_rank=1", "--config", "a.toml"])
    assert _own_job() == first
    monkeypatch.setattr("sys.argv", ["train.py", "--local_rank=1", "--config", "b.toml"])
    assert _own_job() != first
