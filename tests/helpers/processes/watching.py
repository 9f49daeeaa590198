"""A training watched from outside while it runs: each rank's memory as the kernel has it, and when steps ended."""

import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was seen of a command that ended well."""

    words: str
    peak_bytes: dict[int, int]
    """Most resident memory (VmHWM) of each rank; the launcher itself is none."""

    step_times: tuple[float, ...]
    """When each line of the history was first seen, in seconds of a steady clock."""


def watch(command: Sequence[str], history: Path, *, timeout_s: float, env: Mapping[str, str] | None = None) -> Watched:
    """Run a launcher to its end, looking at its ranks now and then; fail with its words unless it exits with 0.

    It is forked: see ``tests.helpers.processes.forked``. What it was forked from counts in the memory of a rank, as
    imports do.
    """
    peaks: dict[int, int] = {}
    times: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        said = Path(place) / "words"
        process = Forked(command, cwd=ROOT, env=environment(env), stdout=said)
        deadline = time.monotonic() + timeout_s
        for look in itertools.count():
            if process.poll() is not None:
                break
            if look % 10 == 0:
                for rank, peak in _peaks(process.pid).items():
                    peaks[rank] = max(peak, peaks.get(rank, 0))
            steps = history.read_text().count("\n") if history.exists() else 0
            times += [time.monotonic()] * (steps - len(times))
            if time.monotonic() > deadline:
                _end(process)
                raise AssertionError(f"did not end in {timeout_s} s\n{said.read_text(errors='replace')[-8000:]}")
            time.sleep(0.05)
        words = said.read_text(errors="replace")
    assert process.returncode == 0, f"exit code {process.returncode}\n{words[-8000:]}"
    return Watched(words=words, peak_bytes=peaks, step_times=tuple(times))


def _end(process: Forked) -> None:
    ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in ours:
        one.kill()
    process.wait(30)


def _peaks(pid: int) -> dict[int, int]:
    """VmHWM of each rank below the process ``pid``, in bytes."""
    found = {}
    try:
        for child in psutil.Process(pid).children(recursive=True):
            line = child.cmdline()
            rank = next((word.removeprefix("--local_rank=") for word in line if word.startswith("--local_rank=")), None)
            status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            peak = next((int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM:")), None)
            if rank is not None and peak is not None:
                found[int(rank)] = peak
    except (psutil.NoSuchProcess, OSError):
        pass  # one of them has just ended
    return found
