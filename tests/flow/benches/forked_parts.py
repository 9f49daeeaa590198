"""A part of first light whose own commands are forked: ``python -m tests.flow.benches.forked_parts MODULE ...``.

They are forked from the process that this one was forked from: autograd does not go on in the children of a process
that it has run in.
"""

import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import run_forked

MODULES = ("tests.gpu.parts.d_saves", "tests.gpu.parts.e_ranks", "tests.gpu.parts.h_long")
"""Parts that start commands."""

WITHIN_S = 1_200.0
"""For one that has no limit of its own."""


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    check: bool,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    capture_output: bool = False,
    text: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run``, of commands in Python or the launcher alone."""
    assert not check
    done = run_forked(command, timeout_s=timeout or WITHIN_S, env=env, cwd=cwd)
    if not capture_output:
        print(done.stdout, done.stderr, flush=True)
    return done


class _Popen(subprocess.Popen[str]):
    """``subprocess.Popen``, of a command in Python: its output comes with the part's own words."""

    def __new__(cls, command: Sequence[str], *, cwd: Path) -> Forked:
        assert command[0] == sys.executable
        process = Forked(command, cwd=cwd, env=os.environ)
        threading.Thread(target=_repeat, args=(process,), daemon=True).start()
        return process


def _repeat(process: Forked) -> None:
    for line in process.stdout or ():
        print(line, end="", flush=True)


if __name__ == "__main__":
    known: dict[str, Any] = {**vars(subprocess), "run": run, "Popen": _Popen}
    sys.modules["subprocess"] = SimpleNamespace(**known)  # type: ignore[assignment]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
