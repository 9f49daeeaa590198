"""Requests to stop: a signal to any rank, a file ``STOP`` in the run folder, or a launcher that has gone.

Nothing is stopped here. A request is remembered on the rank that it reached; where all ranks meet anyway, that rank
raises it, and so it reaches all of them at the same step.
"""

import os
import signal
import time
from collections.abc import Sequence
from types import FrameType

from ccts_dist.train.resilience.launcher_watch import has_gone, launchers_above

STOP_FILE = "STOP"
"""In the run folder; its contents do not matter."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""The last two are what a terminal sends: Ctrl-C, and that it was closed."""

IMPATIENT_S = 2.0
"""A second Ctrl-C after at least so long ends at once. Sooner it may be the same one: terminal and launcher both pass
it on. Further SIGTERMs never do: launchers send several."""

IMPATIENT_EXIT = 130
"""128 + SIGINT, as a shell has it."""

LOOK_S = 1.0
"""Seconds between looks for the file and at the launcher."""


class StopSignals:
    """Turns the first of ``STOP_SIGNALS`` into a request and outlives the others. Only for a process's main thread.

    Signals that were being ignored stay so: ``nohup`` means it.
    """

    def __init__(self) -> None:
        self.request = ""
        """The request in words; "" while there is none."""

        self._interrupted_at: float | None = None
        # Python's handlers wait for the main thread, which may be stuck; bytes in this pipe do not.
        self.readable, self._writable = os.pipe()
        os.set_blocking(self.readable, False)
        os.set_blocking(self._writable, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heeded}

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.request = self.request or signal.Signals(number).name

    def read(self) -> None:
        """Take up what the pipe reports; any thread may call it."""
        try:
            numbers = os.read(self.readable, 4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number in self._before:
                self._handle(number, None)
            if number == signal.SIGINT:
                self._interrupt(time.monotonic())

    def _interrupt(self, now: float) -> None:
        if self._interrupted_at is None:
            self._interrupted_at = now
        elif now - self._interrupted_at >= IMPATIENT_S:
            os._exit(IMPATIENT_EXIT)

    def restore(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.readable)
        os.close(self._writable)


class LauncherWatch:
    """Knows whether what started this rank is still there; nobody is missed where no launcher started it."""

    def __init__(self) -> None:
        # DeepSpeed's launcher sets both, others only the second. Without any, the parent is a shell that may end.
        under_deepspeed = "CROSS_SIZE" in os.environ and "LOCAL_SIZE" in os.environ
        launched = under_deepspeed or "LOCAL_RANK" in os.environ
        self._above = launchers_above(os.getpid(), under_deepspeed=under_deepspeed) if launched else ()

    def has_gone(self) -> bool:
        """True if it has ended, or what started it."""
        return self._above is None or any(has_gone(process) for process in self._above)


def newest_complete(names: Sequence[str]) -> str:
    """The newest finished one of the names in a folder of checkpoints; "" for none."""
    return max((name for name in names if name.startswith("step-") and "." not in name), default="")
