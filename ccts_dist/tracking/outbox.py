"""Events on their way to a server: in order, in batches, from one thread, off the training's path.

Knows no MLflow. Events wait in memory until they are sent; what is left at the end is handed back.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetricEvent:
    """One value of one metric."""

    key: str
    value: float
    step: int
    timestamp_ms: int
    """When it was measured. The same on every attempt, so that a server can tell a repeated event from a new one."""


@dataclass(frozen=True, slots=True)
class ParamEvent:
    """One setting."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class TagEvent:
    """One fact that may change."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A file to keep, read when it is sent."""

    path: Path
    folder: str


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A small file's content."""

    text: str
    name: str


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """The end of the run."""

    status: str


Event = MetricEvent | ParamEvent | TagEvent | FileEvent | TextEvent | StatusEvent


class AwayError(Exception):
    """The server does not answer, or not now: the same events are to be sent again later."""


class RefusedError(Exception):
    """The server will never take these events."""


@final
class Outbox:
    """An ordered queue of events with one sending thread.

    ``send`` gets events of one kind, in order. When it raises ``AwayError`` they stay at the head of the queue and are
    sent again, after a pause that doubles up to a minute; when it raises ``RefusedError`` each of them is tried alone
    and the ones at fault are put aside. Memory is not bounded while a server is away.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Event]], None],
        *,
        interval_s: float = 5.0,
        batch_events: int = 500,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
    ) -> None:
        """Start the thread.

        Args:
            send: called from the sending thread only.
            interval_s: longest time an event waits for others to be sent with it.
            batch_events: as many waiting events are sent at once; also the most in one call of ``send``.
            first_pause_s: seconds between the first failure and the next attempt.
            longest_pause_s: most seconds between two attempts.
        """
        self._send = send
        self._interval_s = interval_s
        self._batch_events = batch_events
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._waiting: deque[Event] = deque()
        self._refused: list[Event] = []
        self._changed = threading.Condition()
        self._num_put = 0
        self._num_done = 0
        self._num_failures = 0
        self._pause_s = 0.0  # 0: the last attempt went well
        self._next_attempt = time.monotonic() + interval_s
        self._hurry = False
        self._closing = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, *events: Event) -> None:
        """Add events; returns at once."""
        with self._changed:
            if not self._waiting and not self._pause_s:
                self._next_attempt = time.monotonic() + self._interval_s
            self._waiting.extend(events)
            self._num_put += len(events)
            if len(self._waiting) >= self._batch_events:
                self._hurry = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Send what is waiting now; False if the server is away or ``timeout_s`` has passed."""
        with self._changed:
            target, failures = self._num_put, self._num_failures
            if self._pause_s and time.monotonic() < self._next_attempt:
                return self._num_done >= target
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._num_done >= target or self._num_failures > failures, timeout_s)
            return self._num_done >= target

    def close(self, timeout_s: float) -> list[Event]:
        """Keep trying for ``timeout_s`` seconds, end the thread, and return what was not sent, in order.

        An event that was under way when the time ran out is among them, though it may yet arrive.
        """
        with self._changed:
            self._closing = True
            self._next_attempt = time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, timeout_s)
            self._abandoned = True
            self._changed.notify_all()
            return [*self._refused, *self._waiting]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    if self._abandoned or (self._closing and not self._waiting):
                        return
                    wait_s = max(0.0, self._next_attempt - time.monotonic()) if self._waiting else None
                    self._changed.wait(wait_s)
                batch = self._head()
            self._attempt(batch)

    def _is_due(self) -> bool:
        if not self._waiting or self._abandoned:
            return False
        if time.monotonic() >= self._next_attempt:
            return True
        return self._hurry and not self._pause_s

    def _head(self) -> list[Event]:
        kind, batch = type(self._waiting[0]), []
        for event in self._waiting:
            if type(event) is not kind or len(batch) == self._batch_events:
                break
            batch.append(event)
            if kind in (FileEvent, TextEvent, StatusEvent):
                break
        return batch

    def _attempt(self, batch: Sequence[Event]) -> None:
        try:
            self._send(batch)
        except AwayError as error:
            self._failed(error)
        except RefusedError as error:
            if len(batch) > 1:
                for event in batch:
                    self._attempt([event])
                    if self._pause_s:  # gone away in the middle: the rest stays at the head
                        return
            else:
                log.warning("tracking: the server refuses %s for good: %s", _words(batch[0]), error)
                self._done(batch, refused=True)
        else:
            self._done(batch)

    def _done(self, batch: Sequence[Event], *, refused: bool = False) -> None:
        with self._changed:
            if self._pause_s:
                log.warning("tracking: the server is back; sending what was kept")
            if refused:
                self._refused.extend(batch)
            for _ in batch:
                self._waiting.popleft()
            self._num_done += len(batch)
            self._pause_s = 0.0
            if not self._waiting:
                self._hurry = False
                self._next_attempt = time.monotonic() + self._interval_s
            else:
                self._next_attempt = time.monotonic()  # what waits behind a batch that was due is due too
            self._changed.notify_all()

    def _failed(self, error: AwayError) -> None:
        with self._changed:
            if not self._pause_s:
                log.warning("tracking: the server is away; training goes on, events are kept: %s", error)
            self._num_failures += 1
            longest = self._first_pause_s if self._closing else self._longest_pause_s
            self._pause_s = min(longest, max(self._first_pause_s, 2 * self._pause_s))
            self._next_attempt = time.monotonic() + self._pause_s
            self._changed.notify_all()


def _words(event: Event) -> str:
    words = repr(event)
    return words if len(words) < 200 else words[:200] + "..."
