"""Run a function on several real ranks: processes joined by gloo on this machine.

They are forked from a process that has imported all that a training imports and done nothing else: imports take longer
than most of what is run here, and each rank would begin with them.
"""

import os
import pickle
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from tests.helpers.processes.forked import ForkedProcess

HOST = "127.0.0.1"


def run_on_ranks(function: Callable[..., Any], num_ranks: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """What ``function(*args)`` returns on each rank, in rank order; runs within a process group.

    A rank that raises, or leaves with another exit code than 0, or does not end in time, fails the test with the words
    of every rank; its peers are ended.

    Args:
        function: of a module, so that a new process can import it; finds its rank with ``rank_facts``.
        args: anything that can be pickled, as must be what ``function`` returns.
    """
    # This process keeps the store, on a port that the system chose: no other test can take it in between.
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    pipes = [Pipe(duplex=False) for _ in range(num_ranks)]
    ranks = [
        ForkedProcess(target=_run_rank, args=(sender, rank, num_ranks, store.port, function, args))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    for _, sender in pipes:
        sender.close()  # so that a rank that dies ends its pipe
    try:
        answers = _receive([receiver for receiver, _ in pipes], time.monotonic() + timeout_s)
        well = all(answer is not None and answer[0] for answer in answers)
        # A rank with all of DeepSpeed in it takes its time to go; one whose peer has failed may never go.
        leave_by = time.monotonic() + (60.0 if well else 5.0)
        for rank in ranks:
            rank.join(max(0.0, leave_by - time.monotonic()))
    finally:
        alive = [rank.is_alive() for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.join()
    codes = [rank.exitcode for rank in ranks]
    reported = "\n".join(
        f"rank {number}: exit code {codes[number]}{', did not end in time' if alive[number] else ''}\n"
        + ("" if answer is None or answer[0] else answer[1])
        for number, answer in enumerate(answers)
    )
    assert well, reported
    assert codes == [0] * num_ranks, reported
    return [answer[1] for answer in answers if answer is not None]


def end_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *args: Any,
    place: Path,
    grouped: bool = True,
    timeout_s: float = 240.0,
) -> tuple[list[int | None], list[str]]:
    """Exit codes of ranks that run ``function(*args)``, and what each has printed on stderr.

    For ranks that are to fail: nobody ends one because another has failed, as a launcher would.

    Args:
        function: as ``run_on_ranks`` takes it.
        args: as ``run_on_ranks`` takes them.
        place: folder for what they print.
        grouped: within a process group.
        timeout_s: one that is still there then is ended; its code is None.
    """
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    logs = [place / f"rank{rank}.log" for rank in range(num_ranks)]
    ranks = [
        ForkedProcess(target=_end_rank, args=(log, rank, num_ranks, store.port, grouped, function, args))
        for rank, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + timeout_s
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    return codes, [log.read_text() for log in logs]


def _end_rank(
    log: Path,
    rank: int,
    num_ranks: int,
    port: int,
    grouped: bool,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    from ccts_dist.distributed import process_group, rank_facts
    from ccts_dist.errors import exit_without_teardown, run_main

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    _become_rank(rank, num_ranks, port)

    def main(_: list[str] | None) -> int:
        with process_group(rank_facts(), timeout_s=60.0) if grouped else nullcontext():
            function(*args)
        return 0

    exit_without_teardown(run_main(main))


def _become_rank(rank: int, num_ranks: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR=HOST,
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the parent keeps the store
        CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)


def _receive(receivers: list[Connection], deadline: float) -> list[tuple[bool, Any] | None]:
    """Each rank's verdict; None for one that died, or that was still at work when a peer failed or time ran out."""
    answers: list[tuple[bool, Any] | None] = [None] * len(receivers)
    waiting = list(receivers)
    while waiting and (ready := wait(waiting, max(0.0, deadline - time.monotonic()))):
        for receiver in ready:
            assert isinstance(receiver, Connection)
            waiting.remove(receiver)
            try:
                answers[receivers.index(receiver)] = pickle.loads(receiver.recv_bytes())
            except EOFError:
                deadline = min(deadline, time.monotonic() + 5.0)  # peers may wait for it for ever
        if any(answer is not None and not answer[0] for answer in answers):
            deadline = min(deadline, time.monotonic() + 5.0)
    return answers


def _run_rank(
    sender: Connection, rank: int, num_ranks: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    from ccts_dist.distributed import barrier, process_group, rank_facts
    from ccts_dist.errors import exit_without_teardown

    _become_rank(rank, num_ranks, port)
    try:
        with process_group(rank_facts(), timeout_s=60.0):
            answer = function(*args)
            barrier()
    except BaseException:
        _send(sender, (False, traceback.format_exc()))
        raise
    _send(sender, (True, answer))
    exit_without_teardown(0)


def _send(sender: Connection, verdict: tuple[bool, Any]) -> None:
    # Plain bytes: torch would send a tensor as a handle to memory of this process, which is about to end.
    sender.send_bytes(pickle.dumps(verdict))
