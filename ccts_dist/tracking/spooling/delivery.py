"""From a spool to a server: in order, each event until it has arrived or is refused for good."""

from collections.abc import Callable, Sequence
from typing import final

from ccts_dist.tracking.events import Event
from ccts_dist.tracking.spooling.spool import Spool

Send = Callable[[Sequence[Event]], None]
"""Gives events of one kind, in order, to a server."""


@final
class ServerUnavailableError(Exception):
    """The server could not be reached or failed; the same events may succeed later."""


@final
class RejectedByServerError(Exception):
    """The server will never take these events."""


def deliver(spool: Spool, send: Send, most: int) -> None:
    """Send the next events of one kind, at most so many; nothing when there are none.

    When ``send`` refuses several, each of them is tried alone, and those at fault are put aside.

    Raises:
        ServerUnavailableError: some are not sent, and stay at the head of the spool.
    """
    if not spool.take():
        raise ServerUnavailableError("another process sends what this run has reported")
    batch = spool.head(most)
    if not batch and spool.num_waiting:
        raise ServerUnavailableError("what waits cannot be read back from disk")
    if not batch:
        return
    try:
        send(batch)
    except RejectedByServerError as error:
        if len(batch) == 1:
            spool.refuse(str(error))
        for event in batch if len(batch) > 1 else ():
            _deliver_one(spool, send, event)
    else:
        spool.done(len(batch))


def _deliver_one(spool: Spool, send: Send, event: Event) -> None:
    try:
        send([event])
    except RejectedByServerError as error:
        spool.refuse(str(error))
    else:
        spool.done(1)
