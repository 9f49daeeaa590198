"""Gateways that answer, but not as an MLflow server does: nothing counts as delivered, and no training waits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.errors import ConfigError, RegistryError, TrackingError
from ccts_dist.registry import resolve_model
from ccts_dist.tracking import mlflow_run
from ccts_dist.tracking.events import MetricEvent, ParamEvent, StatusEvent, TagEvent, TextEvent
from ccts_dist.tracking.fetch_run import fetch_run
from ccts_dist.tracking.mlflow_run import MlflowRun
from ccts_dist.tracking.mlflow_sender import MlflowSender
from ccts_dist.tracking.spooling.delivery import ServerUnavailableError
from ccts_dist.tracking.spooling.spooled_run import begin_run
from ccts_dist.tracking.sync import sync

ANSWERS = (b"{}", b"[]", b"", b"<html>sign in</html>", b"\xff\xfe", b'{"run": 5}', b'{"run": {"info": {}}}')


@contextmanager
def gateway(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server that gives the same answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = lambda self: answer(self)  # noqa: N815 - their names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _reply(body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.mark.parametrize("body", ANSWERS)
def test_gateway_that_answers_anything_with_200_takes_nothing(body: bytes, tmp_path: Path):
    with gateway(_reply(body)) as uri:
        run = begin_run(tmp_path, run_name="a", experiment="e", parent="", tracking_uri=uri)
        tracking = MlflowRun(uri=uri, run=run, output=tmp_path, close_s=0.2)
        tracking.metrics({"loss": 1.0}, 1)
        tracking.flush()
        tracking.close("FINISHED")
        assert tracking.run_id == ""
        with pytest.raises(TrackingError, match=r"is away: .* 2 of 2 events of .* are kept"):
            sync(tmp_path)


@pytest.mark.parametrize(
    "event",
    [
        MetricEvent("loss", 1.0, 1, 1),
        ParamEvent("seed", "1"),
        TagEvent("note", "a"),
        TextEvent("words", "a.txt"),
        StatusEvent("FINISHED", 1),
    ],
)
def test_gateway_that_takes_the_place_of_a_server_later_takes_nothing(
    event: MetricEvent | ParamEvent | TagEvent | TextEvent | StatusEvent, tmp_path: Path
):
    with gateway(_reply(b"{}")) as uri:
        run = begin_run(tmp_path, run_name="a", experiment="e", parent="", tracking_uri=uri)
        sender = MlflowSender(uri, run.known_as("0123", uri), tmp_path)
        sender._is_connected = True  # by the server that was there before
        with pytest.raises(ServerUnavailableError):
            sender.send([event])


def test_run_that_a_gateway_seems_to_have_lost_is_not_begun_anew(tmp_path: Path):
    with gateway(_reply(b"{}")) as uri:
        run = begin_run(tmp_path, run_name="a", experiment="e", parent="", tracking_uri=uri)
        sender = MlflowSender(uri, run.known_as("0123", uri), tmp_path)
        with pytest.raises(ServerUnavailableError, match="not as an MLflow server does"):
            sender.connect()
        assert not sender.began_anew
        assert sender.run_id == "0123"


@pytest.mark.parametrize("body", ANSWERS)
def test_registry_behind_a_gateway_is_no_registry(body: bytes, tmp_path: Path):
    with gateway(_reply(body)) as uri:
        with pytest.raises(RegistryError):
            resolve_model("models:/x@champion", tracking_uri=uri, cache=tmp_path)
        with pytest.raises(ConfigError, match=r"runs:/abc: cannot be read at http"):
            fetch_run("runs:/abc", tracking_uri=uri)


def test_gateway_that_drips_holds_no_training_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each byte comes in time, and the answer never ends: no time-out of a library sees that."""
    monkeypatch.setattr(mlflow_run, "CONNECT_S", 0.3)
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        with suppress(OSError):
            while not over.wait(0.05):
                request.wfile.write(b" ")

    with gateway(drip) as uri:
        run = begin_run(tmp_path, run_name="a", experiment="e", parent="", tracking_uri=uri)
        tracking = MlflowRun(uri=uri, run=run, output=tmp_path, close_s=0.2)
        tracking.metrics({"loss": 1.0}, 1)
        tracking.close("FINISHED")
        assert tracking.run_id == ""
        over.set()
