"""Our server of a model on real sockets: requests that lie, a model that fails, and what is counted and logged."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ccts_dist.serving.server as server_module
from ccts_dist.errors import ConfigError
from ccts_dist.inference.predictor import Predictor
from ccts_dist.serving.handler import Served
from ccts_dist.serving.http_metrics import HttpMetrics
from tests.helpers.processes.running_server import LIMITS, POST, Running, answer_of, good_body

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
    assert server.post(good_body())[0] == 200


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


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://x:80/ping", 200),
        ("HTTPS://x/ping?a=b", 200),
        ("http://x", 200),
        ("http://x/elsewhere", 404),
        ("ftp://x/ping", 404),
    ],
)
def test_target_with_scheme_and_host_is_that_without(start: Callable[..., Running], target: str, status: int) -> None:
    found, _ = start().send(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert found == status


def test_requests_sent_ahead_are_answered_in_order(start: Callable[..., Running]) -> None:
    server = start()
    body = good_body()
    ask = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    _, answer = server.send(ask + b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n" + ask + last)
    assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"200"]


def test_small_chunks_are_counted_anew_for_each_request_of_a_connection(start: Callable[..., Running]) -> None:
    server = start()
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 600 + b"0\r\n\r\n"
    _, answer = server.send(POST + chunks + POST + b"Connection: close\r\n" + chunks)
    assert answer.count(b"the body is not valid JSON") == 2


def test_client_that_leaves_before_its_answer_stops_nothing(start: Callable[..., Running]) -> None:
    server = start()
    body = good_body(3.0)
    for cut in (len(body), len(body) // 2):
        with server.connect(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body[:cut]):
            pass
    assert server.post(body)[0] == 200


def test_more_requests_than_the_limit_are_reported_to_come_again(start: Callable[..., Running]) -> None:
    server = start(requests=1)
    with server.app._served._one_at_a_time:  # the model is at work
        body = good_body()
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
        status, answer = server.post(good_body())
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
    assert server.post(good_body())[0] == 200


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
    assert server.post(good_body())[0] == 200
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
