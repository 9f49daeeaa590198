"""A real training on two ranks that is under way: its processes, how far it has come, how it ends."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, inner_launcher, launcher

PATIENCE_S = 600.0
"""A start takes 15 s on a quiet machine; the machines of CI are not."""


class Running:
    """A training that was started under the launcher, in a session of its own. Use as a context manager."""

    def __init__(
        self,
        config: Path,
        output: Path,
        log: Path,
        *args: str,
        script: str = "launch/train.py",
        whole_launcher: bool = False,
    ) -> None:
        self.output, self.log = output, log
        self._config = config
        self._history_before = history_inode(output)
        command = [*(launcher(2) if whole_launcher else inner_launcher(2)), script, "--config", str(config), *args]
        self.process = Forked(command, cwd=ROOT, env=environment(), stdout=log)
        self._began = time.monotonic()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.everything():
            process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def everything(self) -> list[psutil.Process]:
        """All processes of this training that are there, the launchers too, whoever is their parent now."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self._config) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def rank(self, number: int) -> psutil.Process:
        """A rank's process."""
        return self._one(lambda words: f"--local_rank={number}" in words)

    def inner_launcher(self) -> psutil.Process:
        """The launcher that is the ranks' parent."""
        return self._one(lambda words: "deepspeed.launcher.launch" in words)

    def _one(self, is_it: Callable[[list[str]], bool]) -> psutil.Process:
        (process,) = [process for process in self.everything() if is_it(process.cmdline())]
        return process

    def wait_until(self, happens: Callable[[], bool]) -> None:
        """Fail when training ends before."""
        while not happens():
            assert self.process.poll() is None, f"training ended by itself\n{self.words()}"
            assert time.monotonic() - self._began < PATIENCE_S, f"training never came so far\n{self.words()}"
            time.sleep(0.02)

    def is_training(self) -> bool:
        """Whether this start has set up and gone on with the history: it has made a new file of it."""
        return history_inode(self.output) not in (0, self._history_before)

    def wait_for_step(self, step: int) -> None:
        """Until this start is at work and so many steps stand in the history."""
        self.wait_until(lambda: self.is_training() and num_steps(self.output) >= step)

    def wait_for_exit(self, within_s: float = PATIENCE_S) -> int:
        """The launcher's exit code."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"training did not end\n{self.words()}") from None

    def wait_for_silence(self, within_s: float = PATIENCE_S) -> None:
        """Until nothing of the training is left."""
        deadline = time.monotonic() + within_s
        while left := self.everything():
            assert time.monotonic() < deadline, f"{left} are still there\n{self.words()}"
            time.sleep(0.1)

    def words(self) -> str:
        """What all ranks reported."""
        return self.log.read_text(errors="replace")[-12_000:]

    def lines(self, beginning: str) -> list[str]:
        """The lines of that beginning."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith(beginning)]


def num_steps(output: Path) -> int:
    """Whole lines in the history of a run; 0 when it has none."""
    path = output / "history.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def history_inode(output: Path) -> int:
    """Reports one file of history from another; 0 for none."""
    try:
        return (output / "history.jsonl").stat().st_ino
    except FileNotFoundError:
        return 0


def newest_checkpoint(output: Path) -> str:
    """Name of the newest checkpoint whose writing was finished; "" for none."""
    return max((path.name for path in (output / "checkpoints").glob("step-*") if "." not in path.name), default="")
