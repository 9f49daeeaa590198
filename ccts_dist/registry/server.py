"""A student over HTTP, before strangers: the addresses and bodies of MLflow's model server, and a bound on bodies.

``mlflow models serve`` reads and parses a whole body before it asks this library. Here a body is counted as it comes,
and no code that a registry keeps is run.
"""

import asyncio
import json
import signal
import socket
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ccts_dist.errors import ConfigError, RequestError
from ccts_dist.registry.predict import load_student
from ccts_dist.registry.pull import pull_model
from ccts_dist.registry.served import Served, read_limits, rows_of_columns

FORMS = ("dataframe_records", "dataframe_split", "inputs")
"""Fields of a body, one of which has the recordings; MLflow's names."""

_AT_ONCE = 4
"""Requests that are decoded side by side; forward passes take turns."""

_DROPPED_BYTES = 1 << 30
"""What may come above the bound before the connection is cut. A client that still sends hears no answer."""


def serve(model: str, *, host: str, port: int, environment: Mapping[str, str], tracking_uri: str = "") -> None:
    """Answer until a signal comes.

    Args:
        model: as ``pull_model``.
        host: address to listen on.
        port: 0 for any that is free.
        environment: holds the limits, as ``read_limits``.
        tracking_uri: server; "" for the default.

    Raises:
        ConfigError: a limit that cannot be, no such folder, a model that reads transcripts, or a port that is taken.
        RegistryError: unknown, or a file is not what its tag says.
    """
    limits = read_limits(environment)
    pulled = pull_model(model, tracking_uri=tracking_uri)
    served = Served(load_student(pulled.folder), limits)
    config = uvicorn.Config(
        application(served, max_body_bytes=limits.request_bytes),
        limit_concurrency=limits.connections,
        log_level="warning",
        lifespan="off",
    )
    with _listen(host, port) as listener:
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them anew when it has ended
            signal.signal(number, lambda *_: None)
        address = f"http://{host}:{listener.getsockname()[1]}/invocations"
        print(f"{pulled.version or model} at {address}; Ctrl-C ends it", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}. Choose another --host or --port.") from error


def application(served: Served, *, max_body_bytes: int) -> Starlette:
    """The ASGI application: ``POST /invocations``, and ``GET /ping``, ``/health`` and ``/version``.

    What it refuses it answers as MLflow does, with ``{"error_code": ..., "message": ...}``: 400, or 413 for a body
    above ``max_body_bytes``, 415 for one that is not JSON by its own account.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    async def invocations(request: Request) -> Response:
        _check_content_type(request.headers.get("content-type", ""))
        body = await _read_body(request, max_body_bytes)
        async with turns:
            predictions = await asyncio.to_thread(lambda: served.answer(rows_of_body(body)))
        return JSONResponse({"predictions": predictions})

    async def health(_: Request) -> Response:
        return PlainTextResponse("\n")

    async def version(_: Request) -> Response:
        return PlainTextResponse(installed_version("ccts-dist"))

    async def refused(_: Request, error: Exception) -> Response:
        status, reason = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
        return JSONResponse({"error_code": "BAD_REQUEST", "message": reason}, status_code=status)

    return Starlette(
        routes=[
            Route("/invocations", invocations, methods=["POST"]),
            Route("/ping", health),
            Route("/health", health),
            Route("/version", version),
        ],
        exception_handlers={HTTPException: refused, RequestError: refused},
    )


def _check_content_type(given: str) -> None:
    kind, _, parameters = given.lower().replace(" ", "").partition(";")
    if kind != "application/json" or parameters not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise HTTPException(415, f"this server supports the content type application/json in UTF-8, not {given!r}.")


async def _read_body(request: Request, most: int) -> bytes:
    """The body, of which no more than ``most`` bytes are ever kept; the rest is read so that the answer is heard."""
    body, size = bytearray(), 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                body += chunk
                continue
            body.clear()
            if size > most + _DROPPED_BYTES:
                break
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ended early.") from error
    if size > most:
        raise HTTPException(413, f"a body of more than {most} bytes. Send several requests, or FLAC.")
    return bytes(body)


def rows_of_body(body: bytes) -> list[Mapping[str, Any]]:
    """The recordings of a body in one of MLflow's forms.

    Raises:
        RequestError: not JSON, or in none of the forms.
    """
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON that can be read ({error}).") from error
    fields = sorted(tree) if isinstance(tree, dict) else []
    if len(fields) != 1 or fields[0] not in FORMS:
        raise RequestError(f"the body must be a JSON object with exactly one of the input fields {', '.join(FORMS)}.")
    (form,) = fields
    rows = _rows_of_form(form, tree[form])
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(f"recording {number}: is {type(row).__name__}, must be an object with its columns.")
    return rows


def _rows_of_form(form: str, value: Any) -> list[Any]:
    if form == "inputs" and isinstance(value, dict):
        return rows_of_columns(value)
    if form == "dataframe_split":
        columns = value.get("columns") if isinstance(value, dict) else None
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
            raise RequestError("dataframe_split must have 'columns', a list of names.")
        if not isinstance(data, list):
            raise RequestError("dataframe_split must have 'data' field, a list of rows.")
        if not all(isinstance(cells, list) and len(cells) == len(columns) for cells in data):
            raise RequestError("each row of dataframe_split's data must be a list with a cell for each column.")
        return [dict(zip(columns, cells, strict=True)) for cells in data]
    if not isinstance(value, list):
        raise RequestError(f"{form} must be a list of records.")
    return value
