"""Events on their way to a server: in batches, from one thread, off the training's path.

Knows no MLflow.
"""

import logging
import threading
import time
from typing import final

from ccts_dist.tracking.events import Event
from ccts_dist.tracking.spooling.delivery import Send, ServerUnavailableError, deliver
from ccts_dist.tracking.spooling.spool import Spool

log = logging.getLogger(__name__)


@final
class Outbox:
    """A spool with one sending thread.

    ``send`` gets events of one kind, in order. When it raises ``ServerUnavailableError`` they stay in the spool and
    are sent again, after a pause that doubles up to a minute; when it raises ``RejectedByServerError`` each of them
    is tried alone and the ones at fault are put aside.
    """

    def __init__(
        self,
        send: Send,
        spool: Spool,
        *,
        what: str = "the server is away",
        interval_s: float = 5.0,
        batch_events: int = 500,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
    ) -> None:
        """Start the thread, which begins with what the spool holds from before.

        Args:
            send: called from the sending thread only.
            spool: is put to, and closed, by this outbox alone.
            what: is reported when nothing can be sent.
            interval_s: longest time an event waits for others to be sent with it.
            batch_events: as many waiting events are sent at once; also the most in one call of ``send``.
            first_pause_s: seconds between the first failure and the next attempt.
            longest_pause_s: most seconds between two attempts.
        """
        self._send, self._spool = send, spool
        self._what = what
        self._interval_s = interval_s
        self._batch_events = batch_events
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._changed = threading.Condition()
        self._num_failures = 0
        self._pause_s = 0.0  # 0: the last attempt went well
        self._next_attempt = time.monotonic() + (0.0 if spool.num_waiting else interval_s)
        self._hurry = False
        self._closing = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, *events: Event) -> None:
        """Add events, which are on disk when this returns; waits for no server."""
        with self._changed:
            if not self._spool.num_waiting and not self._pause_s:
                self._next_attempt = time.monotonic() + self._interval_s
            self._spool.put(*events)
            if self._spool.num_waiting >= self._batch_events:
                self._hurry = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Send what is waiting now; False if the server is away or ``timeout_s`` has passed."""
        self._spool.sync()
        with self._changed:
            target, failures = self._spool.last, self._num_failures
            if self._pause_s and time.monotonic() < self._next_attempt:
                return self._spool.sent >= target
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._spool.sent >= target or self._num_failures > failures, timeout_s)
            return self._spool.sent >= target

    def close(self, timeout_s: float) -> int:
        """Keep trying for ``timeout_s`` seconds and end the thread; the number of events that were not sent.

        One that was under way when the time ran out is among them, though it may yet arrive.
        """
        with self._changed:
            self._closing = True
            self._next_attempt = time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._spool.num_waiting, timeout_s)
            self._abandoned = True
            self._changed.notify_all()
        self._thread.join(1.0)  # not at once when it is sending
        return self._spool.num_waiting

    def _run(self) -> None:
        while self._is_wanted():
            try:
                deliver(self._spool, self._send, self._batch_events)
            except ServerUnavailableError as error:
                self._failed(error)
            else:
                self._went_well()
        self._spool.close()

    def _is_wanted(self) -> bool:
        """Wait until it is time to send; False when there is nothing more to do."""
        with self._changed:
            while not self._is_due():
                if self._abandoned or (self._closing and not self._spool.num_waiting):
                    return False
                wait_s = max(0.0, self._next_attempt - time.monotonic()) if self._spool.num_waiting else None
                self._changed.wait(wait_s)
            return True

    def _is_due(self) -> bool:
        if not self._spool.num_waiting or self._abandoned:
            return False
        if time.monotonic() >= self._next_attempt:
            return True
        return self._hurry and not self._pause_s

    def _went_well(self) -> None:
        with self._changed:
            if self._pause_s:
                log.warning("tracking: what was kept can be sent again")
            self._pause_s = 0.0
            # What waits behind a batch that was due is due too.
            self._next_attempt = time.monotonic()
            if not self._spool.num_waiting:
                self._hurry = False
                self._next_attempt += self._interval_s
            self._changed.notify_all()

    def _failed(self, error: ServerUnavailableError) -> None:
        with self._changed:
            if not self._pause_s:
                log.warning("tracking: %s; training goes on, events are kept: %s", self._what, error)
            self._num_failures += 1
            longest = self._first_pause_s if self._closing else self._longest_pause_s
            self._pause_s = min(longest, max(self._first_pause_s, 2 * self._pause_s))
            self._next_attempt = time.monotonic() + self._pause_s
            self._changed.notify_all()
