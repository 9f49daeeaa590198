"""Who is lost, by what ranks last reported of themselves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ccts_dist.train.resilience.heartbeat import (
    LOST_A_PEER,
    Heartbeat,
    clear_heartbeats,
    plainly_lost,
    read_heartbeats,
    silent_ranks,
    stuck_ranks,
    write_heartbeat,
)
from ccts_dist.train.resilience.launcher_watch import Process


def heartbeat(rank: int, **changes: object) -> Heartbeat:
    return replace(Heartbeat(rank=rank, host="here", pid=100 + rank, started=7, number=3, place_number=5), **changes)


def processes(**states: str) -> Callable[[int], Process | None]:
    found = {
        int(name[1:]): Process(pid=int(name[1:]), parent=1, started=7, state=state, command=())
        for name, state in states.items()
    }
    return found.get


def test_what_is_written_is_read_and_a_shorter_text_leaves_nothing_of_a_longer_one(tmp_path: Path):
    write_heartbeat(tmp_path, heartbeat(0, place="a long place, far away"))
    write_heartbeat(tmp_path, heartbeat(0, place="near"))
    write_heartbeat(tmp_path, heartbeat(2))
    (tmp_path / "1.json").write_text("{half")
    assert read_heartbeats(tmp_path, 3) == {0: heartbeat(0, place="near"), 2: heartbeat(2)}
    clear_heartbeats(tmp_path)
    assert read_heartbeats(tmp_path, 3) == {}


def test_folder_that_has_vanished_is_no_error(tmp_path: Path):
    write_heartbeat(tmp_path / "gone", heartbeat(0))
    assert read_heartbeats(tmp_path / "gone", 2) == {}


def test_stopped_ended_and_replaced_processes_of_this_host_are_lost_at_once():
    heartbeats = {rank: heartbeat(rank) for rank in range(5)} | {4: heartbeat(4, host="elsewhere")}
    read = processes(p100="S", p101="T", p102="Z")
    assert plainly_lost(heartbeats, host="here", read=read) == {
        1: "is stopped (SIGSTOP)", 2: "has ended", 3: "has ended",
    }  # fmt: skip
    assert plainly_lost({0: heartbeat(0, started=8)}, host="here", read=read) == {0: "has ended"}


def test_rank_that_left_for_its_own_reason_is_lost_and_one_that_lost_a_peer_is_not():
    heartbeats = {0: heartbeat(0, left=LOST_A_PEER), 1: heartbeat(1, left="KeyError: 'x'")}
    assert plainly_lost(heartbeats, host="here", read=processes()) == {1: "left: KeyError: 'x'"}


def test_rank_whose_number_does_not_rise_is_silent():
    before = {0: heartbeat(0), 1: heartbeat(1), 2: heartbeat(2, left=LOST_A_PEER)}
    now = before | {0: heartbeat(0, number=4)}
    assert silent_ranks(before, now, 4) == {1: "gives no sign of life", 3: "has never given a sign of life"}


def test_rank_that_reads_while_the_others_wait_for_it_is_stuck():
    waiting = {0: heartbeat(0, place_number=6, waiting=True), 2: heartbeat(2, place_number=6, waiting=True)}
    assert stuck_ranks(waiting | {1: heartbeat(1, place_number=5)}) == {1: "is stuck"}


def test_rank_outside_the_collective_of_its_step_is_stuck():
    assert stuck_ranks({0: heartbeat(0, waiting=True), 1: heartbeat(1)}) == {1: "is stuck"}


def test_rank_is_stuck_also_when_the_others_have_given_up_already():
    assert stuck_ranks({0: heartbeat(0, left=LOST_A_PEER), 1: heartbeat(1)}) == {1: "is stuck"}
    assert stuck_ranks({0: heartbeat(0, left=LOST_A_PEER), 1: heartbeat(1, waiting=True)}) == {}


def test_nobody_is_singled_out_when_all_wait_or_all_work():
    assert stuck_ranks({0: heartbeat(0, waiting=True), 1: heartbeat(1, waiting=True)}) == {}
    assert stuck_ranks({0: heartbeat(0), 1: heartbeat(1)}) == {}


def test_words_name_rank_host_process_and_place():
    words = heartbeat(1, place="epoch 1/2, step 3: reading", line="fetch.py:30 fetch").words()
    assert words == "rank 1 on here (process 101), last seen at epoch 1/2, step 3: reading (fetch.py:30 fetch)"
