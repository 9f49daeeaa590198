"""Our server of a model on real sockets: clients that are slow, silent, lying or many, and a model that fails."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ccts_dist.serving.http_bodies as http_bodies
import ccts_dist.serving.http_connections as http_connections
import ccts_dist.serving.server as server_module
from ccts_dist.config import ModelConfig
from ccts_dist.errors import ConfigError
from ccts_dist.inference.predictor import Predictor, load_student
from ccts_dist.model import build_model, save_model
from ccts_dist.serving.handler import Limits, Served
from ccts_dist.serving.http_connections import HttpConfig
from ccts_dist.serving.http_metrics import HttpMetrics
from ccts_dist.serving.server import Application, _Server
from tests.helpers.models import model_shapes

LIMITS = Limits(recordings=4, request_bytes=1_000_000, waiting_bytes=1_000_000, head_seconds=60.0, body_seconds=60.0)

POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("student") / "best"
    torch.manual_seed(0)
    config = ModelConfig(embedding_dim=8, speech=model_shapes.speech_config())
    model = build_model(config)
    save_model(folder, model.state_dict(), config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={})
    return load_student(folder)


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


@pytest.fixture
def start(student: Predictor) -> Iterator[Callable[..., Running]]:
    """Starts a server with limits of its own."""
    running: list[Running] = []

    def begin(**limits: Any) -> Running:
        running.append(Running(student, replace(LIMITS, **limits)))
        return running[-1]

    yield begin
    for one in running:
        one.end()


def _good(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).normal(0.0, 0.1, round(16_000 * seconds))
    soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
    return json.dumps({"inputs": {"audio": base64.b64encode(file.getvalue()).decode()}}).encode()


def test_silent_and_half_sent_connections_shut_nobody_out(start: Callable[..., Running]) -> None:
    server = start(connections=96)
    with ExitStack() as stack:
        for number in range(64):
            stack.enter_context(server.connect())
            body = b"Content-Length: 900000\r\n\r\n{" + b" " * 30_000
            stack.enter_context(server.connect(POST + (body if number % 2 else b"X-Slow: ")))
        assert server.get("/ping")[0] == 200
        assert server.get("/ready")[0] == 200
        assert server.post(_good())[0] == 200


def test_connections_above_the_limit_end_the_one_that_was_silent_longest(start: Callable[..., Running]) -> None:
    server = start(connections=2)
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(server.connect(data))
            for data in (b"", POST + b"Content-Length: 9\r\n\r\n{", b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        )
        assert b"200 OK" in third.recv(4_096)
        assert answer_of(first)[0] == 0
        second.sendall(b'"a": 12}')
        assert b"400 Bad Request" in second.recv(4_096)


def test_head_that_does_not_come_in_time_is_refused(start: Callable[..., Running]) -> None:
    server = start(head_seconds=0.1)
    ping = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
    assert server.send(b"")[0] == 0
    status, answer = server.send(POST + b"X-Slow: ")
    assert status == 408
    assert b"the request's head did not come within 0.1 s" in answer
    for rest in (b"GET /", POST + b"X-Slow: "):  # after an answer
        with server.connect(ping) as line:
            assert b"200 OK" in line.recv(4_096)
            line.sendall(rest)
            assert answer_of(line)[0] == 408
    assert [line["status"] for line in server.log] == [408, 408, 408]


def test_body_that_drips_is_refused(start: Callable[..., Running]) -> None:
    server = start(body_seconds=0.2)
    for framing in (b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"):
        with server.connect(POST + framing) as line:
            try:
                for _ in range(200):
                    line.sendall(b" ")
                    time.sleep(0.02)
            except OSError:
                pass
            status, answer = answer_of(line)
        assert status in (408, 0), "a client that still sends may get a reset"
        assert not answer or b"the body came too slowly" in answer
    assert [line["status"] for line in server.log] == [408, 408]


def test_answer_that_takes_long_does_not_keep_the_server_from_ending(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_ANSWER_GRACE_S", 0.1)
    server, body = start(), _good()
    with server.app._served._one_at_a_time, server.connect(POST + b"Content-Length: %d\r\n\r\n" % len(body)) as line:
        line.sendall(body)
        while not server.app._in_hand:
            time.sleep(0.01)
        server.end()
        status, answer = answer_of(line)
    assert status == 503
    assert b"the server is shutting down" in answer


def test_client_that_does_not_read_its_answers_is_cut_off(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "_UNREAD_S", 0.2)
    server = start()
    server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)  # its connections inherit that
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        line.connect(("127.0.0.1", server.port))
        line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)
        while not server.log:
            time.sleep(0.01)
        while server.server.server_state.connections:
            time.sleep(0.01)
    assert len(server.log) < 1_000


def test_half_a_body_does_not_keep_the_server_from_ending(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_BODY_GRACE_S", 0.05)
    server = start()
    with server.connect(POST + b"Content-Length: 100\r\n\r\n{") as line, server.connect(POST) as head:
        while server.app._bodies.num_incomplete == 0:
            time.sleep(0.01)
        server.end()
        status, answer = answer_of(line)
        assert (status, answer_of(head)[0]) == (503, 0)
        assert b"the server is shutting down" in answer


def test_slow_bodies_give_way_where_the_memory_for_bodies_is_full(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_bodies, "_STALLED_S", 0.1)
    server = start()
    with server.connect(POST + b"Connection: close\r\nContent-Length: 999999\r\n\r\n" + b" " * 990_000) as line:
        while server.app._bodies.num_bytes < 990_000:
            time.sleep(0.01)
        assert server.post(_good())[0] == 200
        status, answer = answer_of(line)
        assert status == 503
        assert b"no room for bodies that come slowly" in answer


def test_bodies_together_above_the_limit_are_refused_and_one_of_them_is_read(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_bodies, "_CIRCLE_S", 0.1)
    server = start()
    body = b'{"inputs":"' + b"A" * 900_000 + b'"}'
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(server.post(body)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {400, 503}
    assert 400 in answers, "read to its end, and refused for what it is"
    assert server.app._bodies.num_bytes == 0


BAD_FRAMES: dict[str, tuple[bytes, int, bytes]] = {
    "tiny chunks": (b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 3_000, 400, b"chunks of fewer than 64"),
    "a huge chunk": (b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n", 400, b"no HTTP request"),
    "no chunk": (b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, b"no HTTP request"),
    "gzip as a transfer coding": (b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400, b"no HTTP request"),
    "two lengths": (b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, b"conflicting Content-Length"),
    "a negative length": (b"Content-Length: -2\r\n\r\n{}", 400, b"bad Content-Length"),
    "a length of a hundred digits": (b"Content-Length: " + b"9" * 100 + b"\r\n\r\n{}", 400, b"bad Content-Length"),
    "a length and chunks": (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, b"not both"),
    "a length far too large": (b"Content-Length: 99999999999\r\n\r\n{", 413, b"a body of more than 1000000 bytes"),
    "one that waits for leave": (
        b"Expect: 100-continue\r\nContent-Length: 1000001\r\n\r\n",
        413,
        b"a body of more than",
    ),
    "a large head": (b"X-Large: " + b"a" * 70_000 + b"\r\n\r\n", 431, b"no HTTP request"),
    "many headers": (b"X: y\r\n" * 20_000 + b"\r\n", 431, b"no HTTP request"),
    "gzip beside none": (
        b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n",
        415,
        b"gzip",
    ),
    "gzip": (b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n", 415, b"Content-Encoding 'gzip'"),
    "deflate": (b"Content-Encoding: deflate\r\nConnection: close\r\n\r\n", 415, b"Content-Encoding 'deflate'"),
    "br": (b"Content-Encoding: br\r\nConnection: close\r\n\r\n", 415, b"Content-Encoding 'br'"),
}


def test_frames_that_lie_or_cannot_be_are_refused_in_json_and_the_server_goes_on(start: Callable[..., Running]) -> None:
    server = start()
    for kind, (frame, status, reason) in BAD_FRAMES.items():
        found, answer = server.send(POST + frame)
        assert (found, reason in answer) == (status, True), (kind, answer)
        if status != 431:  # its answer may be lost with what is still being sent
            assert "message" in json.loads(answer.partition(b"\r\n\r\n")[2]), kind
    assert server.post(_good())[0] == 200


def test_methods_that_a_path_does_not_have_are_refused_with_those_it_has(start: Callable[..., Running]) -> None:
    server = start()
    for method, path, status in [
        ("OPTIONS", "/invocations", 405),
        ("GET", "/invocations", 405),
        ("FOO", "/invocations", 405),
        ("DELETE", "/ping", 405),
        ("HEAD", "/ping", 200),
        ("GET", "/elsewhere", 404),
    ]:
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        found, answer = server.send(request.encode())
        assert found == status, (method, answer)
        assert (b"\r\nallow: " in answer) == (status == 405)


def test_requests_sent_ahead_are_answered_in_order(start: Callable[..., Running]) -> None:
    server = start()
    body = _good()
    ask = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    _, answer = server.send(ask + b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n" + ask + last)
    assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"200"]


def test_client_that_leaves_before_its_answer_stops_nothing(start: Callable[..., Running]) -> None:
    server = start()
    body = _good(3.0)
    for cut in (len(body), len(body) // 2):
        with server.connect(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body[:cut]):
            pass
    assert server.post(body)[0] == 200


def test_more_requests_than_the_limit_are_reported_to_come_again(start: Callable[..., Running]) -> None:
    server = start(requests=1)
    with server.app._served._one_at_a_time:  # the model is at work
        body = _good()
        with server.connect(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as line:
            while not server.app._in_hand:
                time.sleep(0.01)
            status, answer = server.post(body)
            assert status == 503
            assert b"\r\nretry-after: 1\r\n" in answer
            assert server.get("/ping")[0] == 200
            server.app._served._one_at_a_time.release()
            assert answer_of(line)[0] == 200
            server.app._served._one_at_a_time.acquire()


def test_model_that_fails_gives_json_and_no_readiness_until_it_is_well(
    start: Callable[..., Running], student: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_PROBE_S", 0.05)
    failing = threading.Event()
    failing.set()

    def fail(*_: Any) -> None:
        if failing.is_set():
            raise torch.OutOfMemoryError("CUDA out of memory")

    server = start()
    hook = student._model.register_forward_pre_hook(fail)
    try:
        status, answer = server.post(_good())
        assert status == 500
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_code"] == "INTERNAL_ERROR"
        for path, expected in (("/ready", 503), ("/health", 503), ("/ping", 200)):
            assert server.get(path)[0] == expected
        metrics = server.get("/metrics")[1].decode()
        assert "ccts_ready 0.0" in metrics
        assert "ccts_model_failures_total 1.0" in metrics
        failing.clear()
        while server.get("/ready")[0] == 503:  # no request: the server asks the model itself
            time.sleep(0.02)
    finally:
        hook.remove()
    assert server.post(_good())[0] == 200


def test_damaged_model_is_found_before_the_first_request(student: Predictor) -> None:
    served = Served(student, LIMITS)
    served.check()
    weight = next(student._model.parameters())
    true = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(ConfigError, match="gives numbers that are not finite"):
            served.check()
    finally:
        weight.data.copy_(true)


def test_requests_are_counted_and_logged(start: Callable[..., Running]) -> None:
    server = start()
    assert server.post(_good())[0] == 200
    assert server.post(b"[]")[0] == 400
    server.get("/ping")
    server.get("/a%0Ab%1b?secret=1")
    metrics = server.get("/metrics")[1].decode()
    for line in [
        'http_requests_total{method="POST",path="/invocations",status="200"} 1.0',
        'http_requests_total{method="POST",path="/invocations",status="400"} 1.0',
        'http_requests_total{method="GET",path="other",status="404"} 1.0',
        "ccts_recordings_total 1.0",
        "ccts_audio_seconds_total 0.5",
        "ccts_requests_in_progress 0.0",
        "ccts_bodies_bytes 0.0",
    ]:
        assert f"\n{line}\n" in metrics, line
    logged = [(line["path"], line["status"], line.get("recordings")) for line in server.log]
    assert logged == [("/invocations", 200, 1), ("/invocations", 400, None), ("/a%0Ab%1b", 404, None)]
    assert server.log[0]["audio_s"] == 0.5


def test_access_log_has_a_line_of_ascii_for_each_request_whatever_a_client_wrote() -> None:
    lines: list[str] = []
    metrics = HttpMetrics((), quiet_paths=(), write=lines.append)
    metrics.note(method="GET", path="/a\n{}\x1b[31m\u2028\x7f", status=404, client="::1", message="x" * 1_000)
    (line,) = lines
    assert line.isascii()
    assert line.replace("\x7f", "").isprintable()
    assert len(line) < 600
    assert json.loads(line)["path"] == "/a\n{}\x1b[31m\u2028\x7f"


def test_openapi_document_lists_the_paths_and_the_answer(start: Callable[..., Running], student: Predictor) -> None:
    server = start()
    document = json.loads(server.get("/openapi.json")[1].partition(b"\r\n\r\n")[2])
    for path, operations in document["paths"].items():
        for method in operations:
            assert server.send(f"{method.upper()} {path} HTTP/1.0\r\n\r\n".encode())[0] in (200, 415)
    answer = document["components"]["schemas"]["Answer"]["properties"]["predictions"]["items"]
    assert answer["required"] == list(student.columns)


def test_server_states_what_it_is_asked_below_a_folder(start: Callable[..., Running], tmp_path: Path) -> None:
    """Only with an audio root does the document offer paths."""
    with_root, without = start(audio_root=tmp_path), start()
    for server, offered in ((with_root, True), (without, False)):
        assert (b"below the server's audio root" in server.get("/openapi.json")[1]) == offered
