"""The programs above a rank that must stay alive for it: its launcher, and the launcher's own starter.

A launcher that dies of a signal informs nobody: ``deepspeed`` leaves its inner launcher and the ranks running, and the
inner one leaves the ranks. Nobody then reads their exit codes or ends them when one fails, so they have to notice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_INNER = "deepspeed.launcher.launch"
_OUTER = "deepspeed.launcher.runner"
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as the system shows it."""

    pid: int
    parent: int
    started: int
    """In clock ticks since the machine started: distinguishes a process from a later one with the same number."""

    state: str
    """One letter: T for stopped, Z for ended and not yet waited for."""

    command: tuple[str, ...]


def read_process(pid: int) -> Process | None:
    """The process of that number; None when there is none, or when this system has no /proc."""
    folder = Path("/proc", str(pid))
    try:
        # The name stands in brackets and may hold any character, brackets too.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        started=int(fields[19]),
        state=fields[0],
        command=tuple(word for word in command if word),
    )


def launchers_above(
    pid: int, *, under_deepspeed: bool, read: Callable[[int], Process | None] = read_process
) -> tuple[Process, ...] | None:
    """The ancestors of ``pid`` whose end must end it, nearest first; None when they have gone already.

    They are its launcher and, under DeepSpeed's, what started that: the ``deepspeed`` command, or the ssh connection
    through which it came. Nothing above counts: a shell may end while its ``nohup deepspeed`` goes on.

    Args:
        pid: a rank's process.
        under_deepspeed: DeepSpeed's launcher has set the rank's environment.
        read: gives a process by number.
    """
    above = list(_ancestors(pid, read))
    if not under_deepspeed:
        return tuple(above[:1])
    if not above:
        return ()  # no /proc here
    if _INNER not in above[0].command:
        return None
    for number, process in enumerate(above[1:], 1):
        if _is_outer(process) or _is_ssh(process):
            return tuple(above[: number + 1])
        if not _runs_one_command(process):
            break
    return tuple(above[:1])


def has_gone(process: Process, read: Callable[[int], Process | None] = read_process) -> bool:
    """True if that very process has ended."""
    found = read(process.pid)
    return found is None or found.started != process.started or found.state in "ZX"


def _ancestors(pid: int, read: Callable[[int], Process | None]) -> Iterator[Process]:
    process = read(pid)
    while process is not None and process.parent > 0:
        process = read(process.parent)
        if process is not None:
            yield process


def _is_outer(process: Process) -> bool:
    # As a script of its own, or run by a Python.
    return _OUTER in process.command or any(Path(word).name == "deepspeed" for word in process.command[:3])


def _is_ssh(process: Process) -> bool:
    return bool(process.command) and Path(process.command[0]).name.partition(":")[0].startswith("sshd")


def _runs_one_command(process: Process) -> bool:
    """A shell that some program started for one command, as ssh does."""
    return bool(process.command) and Path(process.command[0]).name.lstrip("-") in _SHELLS and "-c" in process.command
