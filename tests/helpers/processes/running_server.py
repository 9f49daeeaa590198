"""Our server of a model in a thread of the test's process, and what clients send it."""

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import soundfile

from ccts_dist.inference.predictor import Predictor
from ccts_dist.serving.handler import Limits, Served
from ccts_dist.serving.http_connections import HttpConfig
from ccts_dist.serving.server import Application, _Server

LIMITS = Limits(recordings=4, request_bytes=1_000_000, waiting_bytes=1_000_000, head_seconds=60.0, body_seconds=60.0)

POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Running:
    """A server in a thread of this process."""

    def __init__(self, student: Predictor, limits: Limits) -> None:
        self.app = Application(Served(student, limits), max_body_bytes=limits.request_bytes)
        self.log: list[dict[str, Any]] = []
        self.app.metrics._write = lambda line: self.log.append(json.loads(line))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        config = HttpConfig(
            self.app,
            connections=limits.connections,
            head_seconds=limits.head_seconds,
            body_seconds=limits.body_seconds,
            refused=self.app.note_refused,
            timeout_graceful_shutdown=6,
            timeout_keep_alive=1,
        )
        self.server = _Server(config, self.app)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def end(self) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    @contextmanager
    def connect(self, data: bytes = b"") -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as line:
            line.sendall(data)
            yield line

    def send(self, data: bytes) -> tuple[int, bytes]:
        """Status and rest of what is answered before the server closes."""
        with self.connect(data) as line:
            return answer_of(line)

    def get(self, path: str) -> tuple[int, bytes]:
        return self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    def post(self, body: bytes, headers: bytes = b"") -> tuple[int, bytes]:
        return self.send(POST + headers + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def answer_of(line: socket.socket) -> tuple[int, bytes]:
    """Status, and headers and body; (0, b"") of a connection closed without a word."""
    answer = b""
    try:
        while part := line.recv(65_536):
            answer += part
    except ConnectionResetError:
        pass
    return (int(answer.split()[1]), answer) if answer else (0, b"")


def good_body(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).normal(0.0, 0.1, round(16_000 * seconds))
    soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
    return json.dumps({"inputs": {"audio": base64.b64encode(file.getvalue()).decode()}}).encode()
