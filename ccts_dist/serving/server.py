"""A student over HTTP, before strangers: the addresses and bodies of MLflow's model server, with bounds.

``mlflow models serve`` reads and parses a whole body before it asks this library. Here a body is counted and timed as
it comes, and no code that a registry keeps is run.
"""

import asyncio
import ctypes
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version as installed_version
from typing import Any, TypeVar, final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ccts_dist.errors import ConfigError, RequestError
from ccts_dist.inference.predictor import load_student
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.registry.pull import pull_model
from ccts_dist.serving.handler import Served, read_limits
from ccts_dist.serving.http_bodies import Bodies
from ccts_dist.serving.http_connections import HttpConfig
from ccts_dist.serving.http_metrics import FACTS, HttpMetrics
from ccts_dist.serving.multipart_body import FORM, Form, boundary_of, form_of_body
from ccts_dist.serving.openapi import openapi_document
from ccts_dist.serving.page import render_page
from ccts_dist.serving.request_body import rows_of_body

_AT_ONCE = 2
"""Requests that are decoded side by side, in memory of their own; forward passes take turns."""

_PROBE_S, _MAX_PROBE_S = 1.0, 30.0
"""Between a failure of the model and a request of the server's own to it, doubled up to the second."""

_BODY_GRACE_S, _ANSWER_GRACE_S, _GRACE_S = 1.0, 5.0, 6
"""After a signal: for bodies that are coming, for answers that are asked for, and for all to be sent."""

_LARGE_BYTES = 1 << 20
"""Size of a body, after which freed memory is returned."""

_PROBES = ("/ping", "/health", "/ready", "/metrics")
_PATHS = ("/invocations", "/version", "/openapi.json", *_PROBES)

_MAX_MESSAGE = 1_000
"""Characters of a refusal; it may repeat what was sent."""

_CODES = {403: "PERMISSION_DENIED", 404: "ENDPOINT_NOT_FOUND", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
"""MLflow's names of what is not a BAD_REQUEST."""

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


def serve(
    model: str, *, host: str, port: int, environment: Mapping[str, str], tracking_uri: str = "", page: bool = True
) -> None:
    """Answer until a signal comes. A forward pass may outlive it: the caller ends the process.

    Args:
        model: as ``pull_model``.
        host: address to listen on.
        port: 0 for any that is free.
        environment: holds the limits, as ``read_limits``.
        tracking_uri: server; "" for the default.
        page: answer GET / with a page for people.

    Raises:
        ConfigError: a limit that cannot be, no such folder, a model that reads transcripts or gives no finite numbers,
            or a port that is taken.
        RegistryError: unknown, or a file is not what its tag states.
    """
    limits = read_limits(environment)
    pulled = pull_model(model, tracking_uri=tracking_uri)
    served = Served(load_student(pulled.folder), limits)
    with _listen(host, port) as listener:
        served.check()
        app = application(served, max_body_bytes=limits.request_bytes, name=pulled.version, page=page)
        config = HttpConfig(
            app,
            connections=limits.connections,
            head_seconds=limits.head_seconds,
            body_seconds=limits.body_seconds,
            refused=app.note_refused,
            timeout_graceful_shutdown=_GRACE_S,
        )
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them anew when it has ended
            signal.signal(number, lambda *_: None)
        address = f"http://{host}:{listener.getsockname()[1]}"
        for_people = f", a page for people at {address}/" if page else ""
        print(f"{pulled.version or model} at {address}/invocations{for_people}; Ctrl-C ends it", flush=True)
        _Server(config, app).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}. Choose another --host or --port.") from error


@final
class _Server(uvicorn.Server):
    def __init__(self, config: HttpConfig, app: "Application") -> None:
        super().__init__(config)
        self._app = app
        app.metrics.gauge("http_connections", "Open connections.", lambda: len(self.server_state.connections))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: bodies that have not come are refused soon, answers are waited for a little longer."""
        self._app.begin_shutdown()
        await super().shutdown(sockets)


def application(served: Served, *, max_body_bytes: int, name: str = "", page: bool = True) -> "Application":
    """The ASGI application of a served model, whose bodies have at most so many bytes.

    Args:
        name: of the model, for its page.
        page: answer GET / with a page for people.
    """
    return Application(served, max_body_bytes=max_body_bytes, name=name, page=page)


@final
class Application:
    """``POST /invocations``; ``GET /ping`` (liveness), ``/health`` and ``/ready`` (readiness), ``/version``,
    ``/metrics`` and ``/openapi.json``; ``GET /``, a page for people.

    What it refuses it answers as MLflow does, with ``{"error_code": ..., "message": ...}``; see ``openapi``.
    """

    def __init__(self, served: Served, *, max_body_bytes: int, name: str = "", page: bool = True) -> None:
        limits = served.limits
        self._rendered = render_page(served.student, limits, name=name) if page else None
        self._served, self._limits = served, limits
        self._bodies = Bodies(
            most_of_one=max_body_bytes,
            most_of_all=max(max_body_bytes, limits.waiting_bytes),
            seconds=limits.body_seconds,
        )
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="answer")
        self._in_hand: set[asyncio.Timeout] = set()
        self._not_ready = ""
        self._recovery: asyncio.Task[None] | None = None
        self._closing = False
        self.metrics = HttpMetrics(_PATHS if self._rendered is None else ("/", *_PATHS), quiet_paths=_PROBES)
        self.metrics.gauge("ccts_ready", "1 when the model answers.", lambda: float(not self._not_ready))
        self.metrics.gauge("ccts_requests_in_progress", "Whole requests, waiting or answered.", self._in_progress)
        self.metrics.gauge("ccts_bodies_incomplete", "Bodies coming.", lambda: self._bodies.num_incomplete)
        self.metrics.gauge("ccts_bodies_bytes", "Bytes of bodies in memory.", lambda: self._bodies.num_bytes)
        self._asgi = self.metrics.observed(self._starlette())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        target = str(scope.get("path", ""))
        if target.lower().startswith(("http://", "https://")):  # absolute-form, which all must take (RFC 9112, 3.2.2)
            scope = {**scope, "path": "/" + target.partition("://")[2].partition("/")[2]}
        await self._asgi(scope, receive, send)

    def begin_shutdown(self) -> None:
        """Refuse what comes from now on, and soon what has not come whole."""
        self._closing = True
        for ends in self._in_hand:
            ends.reschedule(asyncio.get_running_loop().time() + _ANSWER_GRACE_S)
        self._bodies.end_incomplete(_BODY_GRACE_S)

    def note_refused(self, status: int, reason: str, client: str) -> None:
        """Count and log what was no HTTP request."""
        self.metrics.note(method="", path="", status=status, client=client, message=reason)

    def _starlette(self) -> Starlette:
        gets = {
            "/ping": self._ping,
            "/health": self._ready,
            "/ready": self._ready,
            "/version": self._version,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        } | ({} if self._rendered is None else {"/": self._page})
        return Starlette(
            routes=[
                Route("/invocations", self._invocations, methods=["POST"]),
                *(Route(path, handler) for path, handler in gets.items()),
            ],
            exception_handlers={HTTPException: _refused, RequestError: _refused, Exception: _failed},
        )

    async def _invocations(self, request: Request) -> Response:
        _check_headers(request)
        self._check_busy()
        async with self._bodies.read(request) as body:
            self._check_busy()
            async with asyncio.timeout(None) as ends:
                self._in_hand.add(ends)
                try:
                    return JSONResponse(await self._in_turn(request, body))
                except asyncio.CancelledError:
                    if ends.expired():
                        raise _shutting_down() from None
                    raise
                finally:
                    self._in_hand.discard(ends)

    async def _in_turn(self, request: Request, body: bytearray) -> dict[str, Any]:
        must_wait = self._turns.locked()
        async with self._turns:
            if must_wait and await request.is_disconnected():
                raise HTTPException(499, "the client has gone.")
            return await self._answer(request, body)

    async def _answer(self, request: Request, body: bytearray) -> dict[str, Any]:
        """The predictions, and those of windows where a form asks for them.

        Raises:
            RequestError: the request's own fault.
            HTTPException: the model's.
        """
        facts = request.scope[FACTS]

        def answer() -> dict[str, Any]:
            try:
                form = self._form_of(request, body)
                facts["recordings"] = len(form.rows)
                on_audio = lambda num: facts.update(audio_s=num / SAMPLE_RATE_HZ)  # noqa: E731
                if form.windows is None:
                    return {"predictions": self._served.answer(form.rows, on_audio=on_audio)}
                means, curves = self._served.answer_windows(form.rows, form.windows, on_audio=on_audio)
                return {"predictions": means, "windows": curves}
            finally:
                if len(body) > _LARGE_BYTES:
                    _return_memory()

        try:
            answered = await self._in_thread(answer)
        except RequestError:
            raise
        except Exception as error:
            name = type(error.__cause__ or error).__name__
            _log.exception("the model failed on a request")
            self.metrics.model_failures.inc()
            self._not_ready = f"the model failed when it was last asked ({name})."
            if self._recovery is None:
                self._recovery = asyncio.create_task(self._recover())
            raise HTTPException(500, f"the model failed ({name}). The server's log has the reason.") from error
        self._not_ready = ""
        self.metrics.recordings.inc(facts["recordings"])
        self.metrics.audio_seconds.inc(facts.get("audio_s", 0.0))
        return answered

    def _form_of(self, request: Request, body: bytearray) -> Form:
        """The recordings of a body, JSON or a form by its Content-Type."""
        recordings = self._limits.recordings
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary is None:
            return Form(rows=rows_of_body(body, max_recordings=recordings), windows=None)
        return form_of_body(body, boundary, max_recordings=recordings, recording_bytes=self._limits.recording_bytes)

    async def _recover(self) -> None:
        """Ask the model until it answers: a load balancer sends nothing to a server that is not ready."""
        pause = _PROBE_S
        while self._not_ready:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PROBE_S)
            if not self._not_ready:
                break
            try:
                await self._in_thread(self._served.check)
            except Exception as error:  # noqa: BLE001 - the reason was logged when it first failed
                self._not_ready = f"the model failed when it was last asked ({type(error).__name__})."
            else:
                self._not_ready = ""
        self._recovery = None

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _in_progress(self) -> int:
        return len(self._in_hand)

    def _check_busy(self) -> None:
        if self._closing:
            raise _shutting_down()
        if len(self._in_hand) >= self._limits.requests:
            reason = f"{len(self._in_hand)} requests wait or are answered already. Send it again later."
            raise HTTPException(503, reason, headers={"Retry-After": "1"})

    async def _ping(self, _: Request) -> Response:
        return PlainTextResponse("\n")

    async def _ready(self, _: Request) -> Response:
        reason = "the server is shutting down." if self._closing else self._not_ready
        if reason:
            raise HTTPException(503, reason)
        return PlainTextResponse("\n")

    async def _version(self, _: Request) -> Response:
        return PlainTextResponse(installed_version("ccts-dist"))

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _page(self, _: Request) -> Response:
        assert self._rendered is not None, "there is no such route without a page"
        return HTMLResponse(self._rendered[0], headers=self._rendered[1])

    async def _openapi(self, _: Request) -> Response:
        version, student = installed_version("ccts-dist"), self._served.student
        return JSONResponse(
            openapi_document(
                version=version,
                columns=student.columns,
                categories=student.categories,
                limits=self._limits,
                page=self._rendered is not None,
            )
        )


def _return_memory() -> None:
    """Give the system what the C library keeps of freed memory: half a gigabyte after an hour of audio."""
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _shutting_down() -> HTTPException:
    return HTTPException(503, "the server is shutting down.", headers={"Connection": "close"})


async def _refused(request: Request, error: Exception) -> Response:
    """The answer to what is refused; the access log has its message too."""
    if isinstance(error, HTTPException):
        status, reason, headers = error.status_code, error.detail, error.headers
    else:
        status, reason, headers = 400, str(error), None
    reason = reason if len(reason) <= _MAX_MESSAGE else f"{reason[:_MAX_MESSAGE]}..."
    request.scope.setdefault(FACTS, {})["message"] = reason
    code = _CODES.get(status, "BAD_REQUEST")
    return JSONResponse({"error_code": code, "message": reason}, status_code=status, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    """The answer where this program is at fault."""
    _log.error("a request failed", exc_info=error)
    return await _refused(request, HTTPException(500, f"the server failed ({type(error).__name__})."))


def _check_headers(request: Request) -> None:
    """Refuse what is no plain JSON or form by its own account, forms of other sites' pages, and two lengths: a proxy
    may believe the other one.

    Raises:
        HTTPException: 415, 403 or 400.
    """
    coding = ", ".join(request.headers.getlist("content-encoding")).strip()
    if coding.lower() not in ("", "identity"):
        reason = (
            f"this server takes no compressed body, and this one has Content-Encoding {_shown(coding)}. Send it plain."
        )
        raise HTTPException(415, reason, headers={"Accept-Encoding": "identity"})
    given = request.headers.get("content-type", "")
    kind, _, parameters = given.lower().replace(" ", "").partition(";")
    is_json = kind == "application/json" and parameters in ("", "charset=utf-8", 'charset="utf-8"')
    if not is_json and boundary_of(given) is None:
        kinds = f"application/json in UTF-8 and {FORM} with a boundary"
        raise HTTPException(
            415, f"this server supports {kinds}, not {_shown(given)}.", headers={"Accept": f"application/json, {FORM}"}
        )
    # A page of any site may send a form from its reader's browser without asking first; JSON it may not.
    if not is_json and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise HTTPException(403, "this form comes from a page of another site. Open this server's own page.")
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        reason = "a body has a Content-Length or a Transfer-Encoding, not both."
        raise HTTPException(400, reason, headers={"Connection": "close"})


def _shown(header: str) -> str:
    return repr(header if len(header) <= 80 else header[:80] + "...")
