"""Connections of a served model's clients: how long one may be silent, how many there may be, and what is no HTTP.

uvicorn has a deadline for an idle connection that has been answered, and none for one that never asks, asks slowly, or
does not read its answer.
"""

import asyncio
import json
import resource
from collections.abc import Callable
from typing import Any, final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_HEAD_BYTES = 16 << 10
"""Most bytes of a request's line and headers."""

_MIN_CHUNK_BYTES, _FREE_CHUNKS = 64, 1_024
"""Each chunk of a chunked body is work for the parser, however small. So many may be smaller on average."""

_UNREAD_S = 20.0
"""In which a client must take what waits for it."""

_BACKLOG, _SPARE_FILES = 128, 256
"""Connections accepted at once, before the first of them is counted; files of the process that are none."""


@final
class HttpConfig(uvicorn.Config):
    """uvicorn's settings, and those of a connection.

    Args:
        app: the ASGI application.
        connections: most at a time.
        head_seconds: as ``Limits``.
        body_seconds: for the rest of a body that was refused before it had come.
        refused: is called with status and reason of what was no HTTP, and the client's address.
    """

    def __init__(
        self,
        app: Any,
        *,
        connections: int,
        head_seconds: float,
        body_seconds: float,
        refused: Callable[[int, str, str], None],
        **more: Any,
    ) -> None:
        # No WebSockets, and no line of uvicorn's own: clients write what it would print.
        own: dict[str, Any] = {"http": HttpConnection, "ws": "none", "log_level": "critical", "server_header": False}
        super().__init__(app, lifespan="off", backlog=_BACKLOG, **own, **more)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.connections = min(connections, max(1, files - _SPARE_FILES)) if files > 0 else connections
        self.head_seconds, self.body_seconds = head_seconds, body_seconds
        self.refused = refused


@final
class HttpParser(h11.Connection):
    """h11's, which also counts chunks, and keeps the reason of a refusal."""

    refusal: h11.RemoteProtocolError | None = None
    _num_chunks = _num_bytes = 0

    def next_event(self) -> Any:
        """The next part of a request.

        Raises:
            h11.RemoteProtocolError: no HTTP, or chunks too small.
        """
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
            # h11 asks only heads that have not come whole.
            if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > _MAX_HEAD_BYTES:
                self.refusal = h11.RemoteProtocolError("the head is too large", error_status_hint=431)
                raise self.refusal
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start
            self._num_bytes += len(event.data)
            if self._num_chunks > _FREE_CHUNKS and self._num_bytes < _MIN_CHUNK_BYTES * self._num_chunks:
                self.refusal = h11.RemoteProtocolError(f"chunks of fewer than {_MIN_CHUNK_BYTES} bytes on average")
                raise self.refusal
        return event


class HttpConnection(H11Protocol):
    """A client's connection."""

    def __init__(
        self,
        config: HttpConfig,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = config
        self.conn = HttpParser(h11.SERVER, _MAX_HEAD_BYTES)
        self._head_deadline: asyncio.TimerHandle | None = None
        self._unread_deadline: asyncio.TimerHandle | None = None
        self._active_at = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; where there are too many, the connection that has been silent longest ends."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.connections:
            others = [one for one in self.connections if isinstance(one, HttpConnection) and one is not self]
            silent = [one for one in others if one.is_waiting and not one.transport.is_closing()]
            if silent:
                min(silent, key=lambda one: (not one.is_idle, one._active_at)).transport.abort()
        self._await_head(self._settings.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_awaiting_head()
        self._stop_awaiting_reader()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """True without a request."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_waiting(self) -> bool:
        """True while the next step is the client's."""
        return self.is_idle or self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        self._active_at = self.loop.time()
        super().data_received(data)

    def handle_events(self) -> None:
        """Take the requests and bodies that have come."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_awaiting_head()

    def on_response_complete(self) -> None:
        """Wait for the next request, and before it for the rest of a body."""
        rest_s = self._settings.body_seconds if self.cycle.more_body else 0.0
        self._await_head(self._settings.head_seconds + rest_s)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the client to take what it was sent, for a time."""
        super().pause_writing()
        if self._unread_deadline is None:
            self._unread_deadline = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._stop_awaiting_reader()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as everything is refused, and close.

        Args:
            msg: uvicorn's words, which give no reason.
        """
        refusal = self.conn.refusal if isinstance(self.conn, HttpParser) else None
        reason = f"no HTTP request that can be read ({refusal or msg})."
        self._refuse(431 if refusal is not None and refusal.error_status_hint == 431 else 400, reason)

    def shutdown(self) -> None:
        """End when the answer at hand is given."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # whatever it was saying, nobody will read it
            self.transport.abort()

    def _refuse(self, status: int, reason: str) -> None:
        body = json.dumps({"error_code": "BAD_REQUEST", "message": reason}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        try:
            parts = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        except h11.LocalProtocolError:  # an answer has begun
            pass
        self.transport.close()
        if not self.is_idle:  # the application learns that the client has gone, and notes the request
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._settings.refused(status, reason, self.client[0] if self.client else "")

    def _await_head(self, seconds: float) -> None:
        self._stop_awaiting_head()
        self._head_deadline = self.loop.call_later(seconds, self._head_is_late)

    def _stop_awaiting_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _stop_awaiting_reader(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()
            self._unread_deadline = None

    def _head_is_late(self) -> None:
        """Refuse half a head; close a connection that sends nothing, or does not end a body that was refused."""
        begun, _ = self.conn.trailing_data
        if begun and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self._refuse(408, f"the request's head did not come within {self._settings.head_seconds:g} s.")
        else:
            self.transport.abort()
