"""Our server of a model on real sockets: clients that are slow, silent or many, and bodies that take memory."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import ccts_dist.serving.http_bodies as http_bodies
import ccts_dist.serving.http_connections as http_connections
import ccts_dist.serving.server as server_module
from tests.helpers.processes.running_server import POST, Running, answer_of, good_body


def test_silent_and_half_sent_connections_shut_nobody_out(start: Callable[..., Running]) -> None:
    server = start(connections=96)
    with ExitStack() as stack:
        for number in range(64):
            stack.enter_context(server.connect())
            body = b"Content-Length: 900000\r\n\r\n{" + b" " * 30_000
            stack.enter_context(server.connect(POST + (body if number % 2 else b"X-Slow: ")))
        assert server.get("/ping")[0] == 200
        assert server.get("/ready")[0] == 200
        assert server.post(good_body())[0] == 200


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
    server, body = start(), good_body()
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
        assert server.post(good_body())[0] == 200
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
