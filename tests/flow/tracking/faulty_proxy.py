"""A proxy in front of a real server that can be reported to fail in the ways that servers and networks do."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("error 500", "error 503", "error 507", "no answer", "answer lost", "page of a proxy", "slow")
"""``answer lost``: the server has done what it was asked, and nobody is given of it."""

WITHOUT_LOGGED_MODELS = "before MLflow 3"

SLOW_S = 0.3


class FaultyProxy:
    """Forwards to one address, or fails in the way that ``fault`` names; counts the requests of each way."""

    def __init__(self, server: str) -> None:
        self._host = server.removeprefix("http://")
        self.fault = ""
        self.seen: dict[str, int] = {}
        self.address = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        fault = self.fault
        self.seen[fault] = self.seen.get(fault, 0) + 1
        if fault.startswith("error"):
            _reply(
                request,
                int(fault.split()[1]),
                b'{"error_code": "INTERNAL_ERROR", "message": "database or disk is full"}',
            )
        elif fault == "page of a proxy" or (fault == WITHOUT_LOGGED_MODELS and "/logged-models" in request.path):
            _reply(request, 404, b"<html>no upstream</html>")
        elif fault == "no answer":
            time.sleep(3.0)
            _hang_up(request)
        else:
            status, content = self._ask(request, body)
            if fault == "answer lost":
                _hang_up(request)
                return
            if fault == "slow":
                time.sleep(SLOW_S)
            _reply(request, status, content)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content


def _reply(request: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    with suppress(OSError):
        request.wfile.write(content)


def _hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with suppress(OSError):
        request.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty_proxy(server: str) -> Iterator[FaultyProxy]:
    """A proxy before the server at ``http://HOST:PORT``, for the length of the block."""
    proxy = FaultyProxy(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):
                super().handle_one_request()

        def log_message(self, format: str, *args: Any) -> None:
            """Report nothing."""

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = lambda self: proxy.answer(self)  # noqa: N815 - their names

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    proxy.address = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
