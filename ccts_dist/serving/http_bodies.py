"""Bodies of requests in memory: how large one may be, how large all may be together, and how slowly one may come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_BYTES_PER_S = 16 << 10
"""Slowest honest sender: 128 kbit/s, after ``Limits.body_seconds``."""

_DROPPED_BYTES = 1 << 30
"""Read and dropped above the limit before the connection is cut. A client that still sends reads no answer."""

_STALLED_S = 3.0
"""Without a byte, after which a body gives way to others where room is short."""

_ROOM_S, _CIRCLE_S = 30.0, 0.5
"""Longest wait for room; the same where only bodies that wait for room hold it."""

_CLOSE = {"Connection": "close"}


class _Reading:
    """A body that is in memory, whole or in part."""

    def __init__(self) -> None:
        now = asyncio.get_running_loop().time()
        self.deadline: asyncio.Timeout | None = None  # None: whole
        self.began, self.last = now, now
        self.num_bytes = 0
        self.waits_for_room = False
        self.gives_way = ""


@final
class Bodies:
    """All bodies in memory.

    Args:
        most_of_one: bytes of a body.
        most_of_all: bytes of all together.
        seconds: in which a body must come, or its first part; ``Limits.body_seconds``.
    """

    def __init__(self, *, most_of_one: int, most_of_all: int, seconds: float) -> None:
        self._most_of_one, self._most_of_all, self._seconds = most_of_one, most_of_all, seconds
        self._readings: dict[_Reading, None] = {}  # oldest first
        self._freed = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return sum(reading.num_bytes for reading in self._readings)

    @property
    def num_incomplete(self) -> int:
        """Bodies of which more is to come."""
        return sum(reading.deadline is not None for reading in self._readings)

    def end_incomplete(self, seconds: float) -> None:
        """Give bodies that have not come so many seconds more; then their requests are refused."""
        for reading in self._readings:
            _cut_short(reading, "the server is shutting down.", asyncio.get_running_loop().time() + seconds)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body of a request, which counts as in memory until the context ends.

        Raises:
            HTTPException: 413 too large, 408 too slow, 400 ended early, 503 no room.
        """
        self._refuse_unread(request)
        reading = _Reading()
        self._readings[reading] = None
        try:
            yield await self._receive(request, reading)
        finally:
            del self._readings[reading]
            self._has_room()

    def _refuse_unread(self, request: Request) -> None:
        """Refuse by its length alone what would not be read to its end, or what waits for leave to be sent."""
        stated = request.headers.get("content-length", "")
        length = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else 0
        waits = request.headers.get("expect", "").lower() == "100-continue"
        if length > self._most_of_one + (0 if waits else _DROPPED_BYTES):
            raise self._too_large(_CLOSE)

    def _too_large(self, headers: dict[str, str] | None = None) -> HTTPException:
        reason = f"a body of more than {self._most_of_one} bytes. Send several requests, or FLAC."
        return HTTPException(413, reason, headers=headers)

    async def _receive(self, request: Request, reading: _Reading) -> bytearray:
        """The body. Of one that is refused the rest is read and dropped, so that the answer is received."""
        body, size, clock = bytearray(), 0, asyncio.get_running_loop().time
        refusal: HTTPException | None = None
        try:
            async with asyncio.timeout_at(reading.began + self._seconds) as reading.deadline:
                async for chunk in request.stream():
                    size += len(chunk)
                    reading.last = clock()
                    if size > self._most_of_one + _DROPPED_BYTES:
                        break
                    if refusal is not None:
                        reading.deadline.reschedule(clock() + self._seconds)
                        continue
                    refusal = await self._why_refused(reading, size, len(chunk))
                    if refusal is not None:
                        body, reading.num_bytes = bytearray(), 0
                        self._has_room()
                        reading.deadline.reschedule(clock() + self._seconds)
                        continue
                    body += chunk
                    reading.num_bytes += len(chunk)
                    if not reading.gives_way:
                        reading.deadline.reschedule(reading.began + self._seconds + size / _BYTES_PER_S)
        except ClientDisconnect as error:
            raise HTTPException(400, "the body ended early.") from error
        except TimeoutError as error:
            if refusal is not None:
                raise refusal from error
            if reading.gives_way:  # the connection stays for a time, so that one that still sends reads the answer
                raise HTTPException(503, reading.gives_way, headers={"Retry-After": "5"}) from error
            reason = (
                f"the body came too slowly: {size} bytes in {clock() - reading.began:.0f} s, fewer than "
                f"{_BYTES_PER_S} bytes a second after {self._seconds:g} s."
            )
            raise HTTPException(408, reason, headers=_CLOSE) from error
        finally:
            reading.deadline = None
        if refusal is not None:
            raise refusal
        return body

    async def _why_refused(self, reading: _Reading, size: int, num_bytes: int) -> HTTPException | None:
        """Refusal of a body of which so many bytes have come, the last of which are not yet kept; None: keep them."""
        if size > self._most_of_one:
            return self._too_large()
        if await self._has_made_room(reading, num_bytes):
            return None
        reason = f"the server holds {self.num_bytes} bytes of bodies already. Send it again later."
        return HTTPException(503, reason, headers={"Retry-After": "5"})

    async def _has_made_room(self, reading: _Reading, num_bytes: int) -> bool:
        """Wait until so many bytes more may be kept, which does not count as the sender's time; False: in vain."""
        clock = asyncio.get_running_loop().time
        asked = clock()
        while self.num_bytes + num_bytes > self._most_of_all:
            reading.waits_for_room = True
            waited = clock() - asked
            if waited > _ROOM_S or (waited > _CIRCLE_S and self._is_newest_of_a_circle(reading)):
                return False
            self._ask_to_give_way(reading)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._freed.wait()
            late = clock() - reading.last
            reading.began, reading.last = reading.began + late, reading.last + late
            if reading.deadline is not None and not reading.gives_way:
                reading.deadline.reschedule(clock() + self._seconds)
        reading.waits_for_room = False
        return True

    def _is_newest_of_a_circle(self, reading: _Reading) -> bool:
        """True for the last of the bodies that fill the memory together and all wait for more of it."""
        holders = [one for one in self._readings if one.num_bytes]
        return all(one.waits_for_room for one in holders) and holders[-1:] == [reading]

    def _ask_to_give_way(self, asking: _Reading) -> None:
        """End the oldest incomplete body that has stalled, or has had its time."""
        now = asyncio.get_running_loop().time()
        for reading in self._readings:
            if reading is asking or reading.deadline is None or reading.gives_way or not reading.num_bytes:
                continue
            if now - reading.last > _STALLED_S or now - reading.began > self._seconds:
                _cut_short(reading, "the server has no room for bodies that come slowly. Send it again later.", now)
                return

    def _has_room(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()


def _cut_short(reading: _Reading, reason: str, when: float) -> None:
    """End an incomplete body at this time of the loop, unless it ends before."""
    if reading.deadline is None or reading.deadline.expired():
        return
    reading.gives_way = reason
    planned = reading.deadline.when()
    reading.deadline.reschedule(when if planned is None else min(when, planned))
