"""A server's notes of its requests: a line of JSON each, and counters for Prometheus."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FACTS = "ccts.facts"
"""Key of a scope's dictionary in which a handler notes what it knows of the request."""

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper ends of the histogram's buckets."""

_MAX_CHARACTERS = 300
"""Most characters of a path or a message in the log."""


@final
class HttpMetrics:
    """Metrics and access log of one server.

    Args:
        paths: those that the server has; others count as "other".
        quiet_paths: asked every few seconds by machines; not logged while all is well.
        write: takes a line of the log.
    """

    def __init__(
        self, paths: tuple[str, ...], *, quiet_paths: tuple[str, ...], write: Callable[[str], None] | None = None
    ) -> None:
        self._paths, self._quiet_paths, self._write = paths, quiet_paths, write or _write_line
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        more: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("http_requests", "Requests answered.", ["method", "path", "status"], **more)
        self._seconds = Histogram(
            "http_request_duration_seconds", "From head to answer.", ["path"], buckets=_SECONDS, **more
        )
        self._received = Counter("http_request_body_bytes", "Bytes of bodies received.", **more)
        self.recordings = Counter("ccts_recordings", "Recordings answered.", **more)
        self.audio_seconds = Counter("ccts_audio_seconds", "Seconds of audio answered.", **more)
        self.model_failures = Counter("ccts_model_failures", "Requests on which the model failed.", **more)

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, description, registry=self._registry).set_function(read)

    def page(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def note(self, *, method: str, path: str, status: int, seconds: float | None = None, **facts: Any) -> None:
        """Count a request, and log it.

        Args:
            path: as the client wrote it, percent signs and all.
            seconds: from head to answer; None for what was no HTTP.
            facts: more for the log.
        """
        known = path if path in self._paths else "other"
        self._requests.labels(method if method in _METHODS else "other", known, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(known).observe(seconds)
        self._received.inc(facts.get("request_bytes", 0))
        if path in self._quiet_paths and status == 200:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "method": method, "path": path, "status": status, "seconds": seconds, **facts}
        # ASCII: control characters and line ends of Unicode, too, are written as escapes.
        self._write(json.dumps({name: _short(value) for name, value in line.items() if value is not None}))

    def observed(self, app: ASGIApp) -> ASGIApp:
        """The application, each of whose requests is noted."""

        async def observe(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.perf_counter()
            status, request_bytes, response_bytes = 499, 0, 0  # 499: the client had gone
            facts: dict[str, Any] = scope.setdefault(FACTS, {})

            async def counting_receive() -> Message:
                nonlocal request_bytes
                message = await receive()
                request_bytes += len(message.get("body", b""))
                return message

            async def counting_send(message: Message) -> None:
                nonlocal status, response_bytes
                status = message.get("status", status)
                response_bytes += len(message.get("body", b""))
                await send(message)

            try:
                await app(scope, counting_receive, counting_send)
            finally:
                raw = scope.get("raw_path") or scope["path"].encode("utf-8", "backslashreplace")
                self.note(
                    method=scope["method"],
                    path=raw.decode("ascii", "backslashreplace"),
                    status=status,
                    seconds=round(time.perf_counter() - began, 4),
                    client=(scope.get("client") or ("",))[0],
                    request_bytes=request_bytes,
                    response_bytes=response_bytes,
                    **facts,
                )

        return observe


def _short(value: Any) -> Any:
    return value[:_MAX_CHARACTERS] + "..." if isinstance(value, str) and len(value) > _MAX_CHARACTERS else value


def _write_line(line: str) -> None:
    with suppress(OSError, ValueError):  # a full disk, or nobody there; the server goes on
        print(line, file=sys.stderr, flush=True)
