"""Which ancestors of a rank must stay alive, in the process trees that occur."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from ccts_dist.train.resilience.launcher_watch import Process, has_gone, launchers_above, read_process

RANK, INNER, NEXT, ABOVE = 40, 30, 20, 10
INNER_COMMAND = ("python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", "launch/train.py")


def tree(*commands: tuple[str, ...]) -> Callable[[int], Process | None]:
    """Processes from the rank upwards, below process 1."""
    pids = [RANK, INNER, NEXT, ABOVE][: len(commands)]
    parents = [*pids[1:], 1]
    found = {
        pid: Process(pid=pid, parent=parent, started=pid, state="S", command=command)
        for pid, parent, command in zip(pids, parents, commands, strict=True)
    }
    found[1] = Process(pid=1, parent=0, started=1, state="S", command=("/sbin/init",))
    return found.get


def watched(read: Callable[[int], Process | None], *, under_deepspeed: bool = True) -> list[int] | None:
    above = launchers_above(RANK, under_deepspeed=under_deepspeed, read=read)
    return None if above is None else [process.pid for process in above]


RANK_COMMAND = ("python", "-u", "launch/train.py", "--local_rank=0")


@pytest.mark.parametrize(
    "outer",
    [
        ("/venv/bin/python", "/venv/bin/deepspeed", "--num_gpus", "2", "launch/train.py"),
        ("deepspeed", "launch/train.py"),
        ("python", "-m", "deepspeed.launcher.runner", "launch/train.py"),
        ("sshd: user@notty",),
        ("/usr/sbin/sshd", "-D"),
    ],
)
def test_both_launchers_or_the_connection_are_watched_and_nothing_above(outer: tuple[str, ...]):
    assert watched(tree(RANK_COMMAND, INNER_COMMAND, outer, ("bash",))) == [INNER, NEXT]


def test_shell_that_ssh_started_for_one_command_is_passed_through():
    read = tree(RANK_COMMAND, INNER_COMMAND, ("/bin/bash", "-c", "cd /x; python -m ..."), ("sshd: user@notty",))
    assert watched(read) == [INNER, NEXT, ABOVE]


@pytest.mark.parametrize("above", [("-bash",), ("slurmstepd: [1.0]",)])
def test_shell_in_which_somebody_types_and_schedulers_may_end(above: tuple[str, ...]):
    assert watched(tree(RANK_COMMAND, INNER_COMMAND, above, ("sshd: user@pts/0",))) == [INNER]


def test_launcher_that_had_gone_before_the_rank_looked_is_missed():
    assert watched(tree(RANK_COMMAND)) is None


def test_other_launchers_are_the_parent():
    read = tree(RANK_COMMAND, ("python", "/venv/bin/torchrun"), ("-bash",))
    assert watched(read, under_deepspeed=False) == [INNER]


def test_system_without_proc_misses_nobody():
    assert watched(lambda _: None) == []


def test_process_is_read_with_its_parent_and_its_end_is_seen_before_anyone_waits_for_it():
    program = "print('here', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdout.readline()  # the kernel shows no command of a process that is only now becoming the program
            found = read_process(child.pid)
            assert found is not None
            assert found.parent == os.getpid()
            assert found.command[-1] == program
            assert not has_gone(found)
            child.stdin.close()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is left for Popen to wait for
            assert has_gone(found)
        finally:
            child.kill()
    assert has_gone(found)


def test_later_process_with_the_same_number_is_another():
    found = Process(pid=RANK, parent=1, started=5, state="S", command=())
    later = Process(pid=RANK, parent=1, started=6, state="S", command=())
    assert has_gone(found, {RANK: later}.get)
