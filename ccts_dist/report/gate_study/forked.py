"""Stages in processes that are forked from one that has imported what they import.

Imports are most of what a small training costs. Each stage has a process, an environment, a command line and a log of
its own, calls what its command calls, and dies with the process that started it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

from ccts_dist.errors import StageError, exit_without_teardown, run_main
from ccts_dist.report.stages import Stage

PRELOADED = "ccts_dist.report.gate_study.preloaded"


def run_forked(stage: Stage, log_path: Path, environment: Mapping[str, str], *, quiet: bool = True) -> float:
    """Run a stage to its end, as ``run_stages`` asks for; the seconds that it took.

    The first word of its command is "MODULE:FUNCTION", which gets the others and gives the exit code.

    Raises:
        StageError: it failed; names its log.
    """
    began = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    process = context.Process(target=_begin, args=(stage.command, str(log_path), dict(environment)))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise StageError(f"{stage.name}: ended with exit code {process.exitcode}. Its whole output is in {log_path}.")
    return time.monotonic() - began


def _die_with_the_study() -> None:
    """However that ends: the next one would find a training under way in the run's folder."""
    study = multiprocessing.parent_process()
    assert study is not None
    study.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _begin(command: tuple[str, ...], log_path: str, environment: dict[str, str]) -> None:
    """Be that stage, in a new process."""
    import_module(PRELOADED)
    threading.Thread(target=_die_with_the_study, daemon=True).start()
    os.environ.update(environment)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with open(1, "w", buffering=1, closefd=False) as out, redirect_stdout(out), redirect_stderr(out):
        sys.argv = list(command)
        module, _, function = command[0].partition(":")
        code = run_main(getattr(import_module(module), function), list(command[1:]))
        print(f"{time.process_time():.1f} s of CPU time")
        exit_without_teardown(code)
