"""Progress of long work: a bar on a terminal, a plain line now and then where there is none (a log, a batch job).

A terminal that was closed, or a log whose reader has gone, silences it and is no reason for the work to stop.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType

from tqdm import tqdm

from ccts_dist.errors import without_controls
from ccts_dist.process.invocation import as_started

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal: often enough to see that it lives, seldom enough for a log that is kept."""


class Progress:
    """A counted piece of work. Use as a context manager; call ``advance`` as it goes on.

    Args:
        total: how much there is to do.
        what: its name, for people.
        unit: what is counted.
        visible: False shows nothing: on every rank but the first.
        start: how much had been done before.
    """

    def __init__(self, total: int, what: str, *, unit: str, visible: bool = True, start: int = 0) -> None:
        self._total, self._what, self._unit = total, what, unit
        self._done = self._start = start
        self._visible = visible
        self._began = self._last_line = time.monotonic()
        self._status = ""
        # Alone in its own line: the plain lines go to the same stream and would be torn apart by a bar.
        self._bar = (
            tqdm(total=total, desc=what, unit=unit, initial=start, dynamic_ncols=True, leave=True)
            if visible and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()
        elif self._visible and self._done > self._start:
            self._line()

    def advance(self, count: int = 1, status: str = "") -> None:
        """``count`` more are done; ``status`` is shown beside."""
        self._done += count
        self._status = status or self._status
        if self._bar is not None:
            if status:
                self._bar.set_postfix_str(status, refresh=False)
            with suppress(OSError):
                self._bar.update(count)
        elif self._visible and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        elapsed = max(1e-9, self._last_line - self._began)
        rate = (self._done - self._start) / elapsed
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate > 0 and self._done < self._total else ""
        beside = f", {self._status}" if self._status else ""
        with suppress(OSError):
            print(
                f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s{left}{beside}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress in MiB of work whose size is known when it begins.

    What this gives is called with the bytes that were dealt with since the last call, and with those of all.
    """
    done = 0
    progress: Progress | None = None
    with ExitStack() as shown:

        def advance(count: int, total: int) -> None:
            nonlocal done, progress
            if progress is None:
                progress = shown.enter_context(Progress(total >> 20, what, unit="MiB"))
            done += count
            progress.advance((done >> 20) - (done - count >> 20))

        yield advance


def log(line: str, *, visible: bool = True) -> None:
    """A plain line for people on stderr, above any bar."""
    if visible:
        with suppress(OSError):
            tqdm.write(without_controls(as_started(line), keep="\n\t"), file=sys.stderr)
            sys.stderr.flush()
