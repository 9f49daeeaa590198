"""A registered model behind ``mlflow models serve`` and behind ``launch/serve.py``: what is answered, what is refused,
and that it goes on.
"""

import base64
import hashlib
import io
import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ccts_dist.errors import ConfigError
from ccts_dist.registry import load_student, register
from ccts_dist.serving.server import serve
from ccts_dist.tracking.mlflow_client import open_client
from tests.helpers.models.small_student import save_student
from tests.helpers.processes.launching import free_port
from tests.helpers.servers.mlflow_server import model_server, start_model_server, wait_until_healthy

JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class Server:
    """Serves one student with small limits; below its audio root lies ``deep/0.wav``."""

    by: str
    address: str
    process_id: int
    recordings: tuple[bytes, ...]
    expected: list[dict[str, float]]
    """Output of the model for each before it was registered."""


def _wav(seconds: float, *, seed: int = 0, subtype: str = "PCM_16") -> bytes:
    noise = np.random.default_rng(seed).normal(0.0, 0.1, round(seconds * 16_000))
    file = io.BytesIO()
    soundfile.write(file, noise, 16_000, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry in a file, ``mlflow.db``, and a run folder whose model it has as ``emotion@champion``."""
    place = tmp_path_factory.mktemp("served")
    save_student(place / "run" / "best")
    register(place / "run", "emotion", alias="champion", tracking_uri=_uri(place))
    return place


def _uri(place: Path) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


@pytest.fixture(scope="module", params=["mlflow", "launch/serve.py"])
def server(place: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    recordings = tuple(_wav(0.5 + 0.3 * number, seed=number) for number in range(4))
    expected = load_student(place / "run" / "best").predict([io.BytesIO(data) for data in recordings])
    root = place / request.param.replace("/", "-")
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "0.wav").write_bytes(recordings[0])
    (place / "secret.wav").write_bytes(recordings[0])
    (root / "out.wav").symlink_to(place / "secret.wav")
    environment = {
        "CCTS_AUDIO_ROOT": str(root),
        "CCTS_MAX_RECORDINGS": "4",
        "CCTS_MAX_RECORDING_BYTES": "100000",
        "CCTS_MAX_SECONDS": "2",
        "CCTS_MAX_REQUEST_BYTES": "60000000",
    }
    with model_server(
        "models:/emotion@champion", place / "log", uri=_uri(place), environment=environment, by=request.param
    ) as running:
        yield Server(
            by=request.param,
            address=running.address,
            process_id=running.process.pid,
            recordings=recordings,
            expected=expected,
        )


def _ask(server: Server, body: bytes | Iterator[bytes], content_type: str = JSON) -> tuple[int, str]:
    """Status and text of the answer."""
    request = urllib.request.Request(f"{server.address}/invocations", body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _answers(server: Server, tree: dict[str, Any]) -> list[dict[str, float]]:
    status, text = _ask(server, json.dumps(tree).encode())
    assert status == 200, text
    return json.loads(text)["predictions"]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _record(**cells: Any) -> bytes:
    return json.dumps({"dataframe_records": [cells]}).encode()


def _assert_like(answers: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(answers) == len(expected)
    for answer, one in zip(answers, expected, strict=True):
        assert answer == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("form", ["records", "split", "inputs", "inputs by row", "path"])
def test_every_form_of_request_in_the_model_card_is_answered(server: Server, form: str) -> None:
    audio = [_b64(data) for data in server.recordings[:2]]
    expected = server.expected[:2]
    trees: dict[str, dict[str, Any]] = {
        "records": {"dataframe_records": [{"audio": one} for one in audio]},
        "split": {"dataframe_split": {"columns": ["audio"], "data": [[one] for one in audio]}},
        "inputs": {"inputs": {"audio": audio}},
        "inputs by row": {"inputs": [{"audio": one} for one in audio]},
        "path": {"dataframe_records": [{"path": "deep/0.wav"}, {"audio": audio[1]}]},
    }
    _assert_like(_answers(server, trees[form]), expected)


ours = pytest.mark.parametrize("server", ["launch/serve.py"], indirect=True)

MLFLOW_SAYS = {
    "a list": "Received a list",
    "a number": "unexpected input type",
    "another column": "no recording",  # MLflow has taken it out
}
"""Where its words differ from ours."""

BAD: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{no json", "valid JSON"),
    "not UTF-8": (b'{"inputs": "\xff\xfe"}', "valid JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "a number": (b"7", "must be a JSON object"),
    "no field that is known": (b'{"rows": []}', "exactly one of the input fields"),
    "two fields": (b'{"inputs": [], "dataframe_records": []}', "exactly one of the input fields"),
    "records that are no list": (b'{"dataframe_records": 5}', "must be a list of records"),
    "a split without data": (b'{"dataframe_split": {"columns": ["audio"]}}', "must have 'data' field"),
    "no rows": (b'{"dataframe_records": []}', "no recording"),
    "another column": (_record(sound="AAAA"), "recording 0: unknown column 'sound'"),
    "a number for audio": (_record(audio=12), "recording 0: 'audio' is int"),
    "a list for audio": (_record(audio=[[1]]), "recording 0: 'audio' is list"),
    "neither column": (_record(audio=None), "recording 0: has neither"),
    "both columns": (_record(audio="AAAA", path="deep/0.wav"), "recording 0: has both"),
    "not base64": (_record(audio="no base64!"), "recording 0: 'audio' is not base64"),
    "no audio": (_record(audio=_b64(b"plain text " * 20)), "recording 0: cannot be decoded"),
    "a cut file": (_record(audio=_b64(_wav(1.0)[:9_000])), "recording 0: is cut"),
    "too short": (_record(audio=_b64(_wav(0.01))), "recording 0: lasts 160 samples"),
    "too long": (_record(audio=_b64(_wav(2.1))), "recording 0: lasts 2.1 s, more than 2 s"),
    "too large": (_record(audio=_b64(_wav(5.0))), "more than 100000 bytes"),
    "too many": (json.dumps({"inputs": {"audio": ["AAAA"] * 5}}).encode(), "5 recordings in one request, more than 4"),
    "an absolute path": (_record(path="/etc/passwd"), "must be relative"),
    "a path upwards": (_record(path="../secret.wav"), "must be relative"),
    "a link out of the root": (_record(path="out.wav"), "no file below the audio root"),
    "an absent file": (_record(path="absent.wav"), "no file below the audio root"),
}


def test_what_is_malformed_oversized_or_no_audio_is_refused_with_a_reason_and_the_server_goes_on(
    server: Server,
) -> None:
    good = {"dataframe_records": [{"audio": _b64(server.recordings[0])}]}
    for kind, (body, reason) in BAD.items():
        status, text = _ask(server, body)
        assert status == 400, f"{kind}: {status} {text}"
        expected = MLFLOW_SAYS.get(kind, reason) if server.by == "mlflow" else reason
        assert expected in json.loads(text)["message"], kind
    _assert_like(_answers(server, good), server.expected[:1])


@pytest.mark.parametrize("content_type", ["application/x-python-pickle", "text/plain", "application/json; charset=x"])
def test_what_is_not_json_by_its_own_account_is_refused(server: Server, content_type: str) -> None:
    status, text = _ask(server, _record(audio="AAAA"), content_type)
    assert status == 415
    assert "support" in text


def test_an_oversized_body_is_refused_and_the_server_goes_on(server: Server) -> None:
    status, text = _ask(server, _record(audio="A" * 50_000_000))
    assert status == 400
    assert "recording 0: 50000000 characters of base64, more than 100000 bytes" in json.loads(text)["message"]
    assert len(text) < 5_000, "what was sent is not sent back"
    _assert_like(_answers(server, {"inputs": {"audio": [_b64(server.recordings[0])]}}), server.expected[:1])


OURS: dict[str, tuple[bytes, str]] = {
    "too deep": (b'{"inputs": ' + b"[" * 200_000, "not valid JSON that can be read"),
    "a number of ten thousand digits": (b'{"inputs": ' + b"7" * 10_000 + b"}", "not valid JSON that can be read"),
    "a text for the rows": (b'{"inputs": "AAAA"}', "inputs must be a list of records"),
    "a row that is a list": (b'{"inputs": [["AAAA"]]}', "recording 0: is list, must be an object"),
    "columns that are no names": (b'{"dataframe_split": {"columns": [[]], "data": [[]]}}', "must have 'columns'"),
    "a split that is a list": (b'{"dataframe_split": []}', "must have 'columns'"),
    "a row too short": (b'{"dataframe_split": {"columns": ["audio"], "data": [[]]}}', "a cell for each column"),
    "columns of unlike length": (b'{"inputs": {"audio": ["AAAA"], "path": []}}', "columns of unlike length"),
    "nothing": (b"", "not valid JSON that can be read"),
}
"""What MLflow's server makes a 500 of, or something else of its own."""


@ours
def test_our_server_also_refuses_what_mlflow_trips_over(server: Server) -> None:
    for kind, (body, reason) in OURS.items():
        status, text = _ask(server, body)
        assert status == 400, f"{kind}: {status} {text}"
        assert reason in json.loads(text)["message"], kind
    host, port = server.address.removeprefix("http://").split(":")
    for request, status in [
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", b"415"),
        (b"GET /invocations HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"no HTTP at all\r\n\r\n", b"400"),
    ]:
        with socket.create_connection((host, int(port)), timeout=60) as line:
            line.sendall(request)
            assert line.recv(4096).split()[1] == status, request
    _assert_like(_answers(server, {"inputs": {"audio": _b64(server.recordings[0])}}), server.expected[:1])


@ours
def test_our_server_keeps_no_more_of_a_body_than_its_limit(server: Server) -> None:
    def peak_mb() -> float:
        status = Path(f"/proc/{server.process_id}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    before = peak_mb()
    for body in (b"A" * 500_000_000, iter([b"A" * 10_000_000] * 50)):  # its length reported, and in chunks
        status, text = _ask(server, body)
        assert status == 413
        assert "a body of more than 60000000 bytes" in json.loads(text)["message"]
    assert peak_mb() < before + 150
    _assert_like(_answers(server, {"inputs": {"audio": _b64(server.recordings[0])}}), server.expected[:1])


@pytest.mark.long
def test_bodies_at_the_limit_stay_within_two_gigabytes_and_health_is_answered(place: Path, tmp_path: Path) -> None:
    """Each is 127 MiB; of empty objects, one took 4.3 GB."""
    size = 127 << 20
    bodies = [b'{"inputs":[' + unit * (size // len(unit)) + b"1]}" for unit in (b"{},", b'"",')]
    # Two long recordings, for the memory of a forward pass; others of as many bytes and a quarter of the time.
    recordings = [_wav(100.0)] * 2 + [_wav(24.2, subtype="DOUBLE")] * 30
    audio = b",".join(b'{"audio":"' + _b64(one).encode() + b'"}' for one in recordings)
    bodies.append(b'{"inputs":[' + audio + b"]}")
    assert max(map(len, bodies)) < 128 << 20
    assert len(audio) > 0.95 * size
    model = str(place / "run" / "best")
    with model_server(model, tmp_path / "log", uri=_uri(place), environment={}, by="launch/serve.py") as running:

        def ask(body: bytes) -> int:
            request = urllib.request.Request(f"{running.address}/invocations", body, {"Content-Type": JSON})
            try:
                with urllib.request.urlopen(request, timeout=600) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code

        statuses: set[int] = set()
        for body in bodies:
            with ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(ask, body) for _ in range(4)]
                while not all(one.done() for one in asked):
                    with urllib.request.urlopen(f"{running.address}/ping", timeout=15) as answer:
                        assert answer.status == 200
            statuses = {one.result() for one in asked}
            assert statuses <= {200, 400, 503}
            status = Path(f"/proc/{running.process.pid}/status").read_text()
            assert int(status.split("VmHWM:")[1].split()[0]) / 1e6 < 2.0
        assert 200 in statuses, "the last are recordings"


def test_requests_in_parallel_are_answered_as_each_would_be_alone(server: Server) -> None:
    def ask(number: int) -> list[dict[str, float]]:
        rows = [{"audio": _b64(server.recordings[number % 4])}, {"audio": _b64(server.recordings[number * 3 % 4])}]
        return _answers(server, {"dataframe_records": rows})

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(12)))
    for number, answers in enumerate(together):
        _assert_like(answers, [server.expected[number % 4], server.expected[number * 3 % 4]])


@pytest.mark.parametrize("by", ["mlflow", "launch/serve.py"])
def test_a_model_altered_in_the_store_with_its_own_list_of_digests_is_not_served(tmp_path: Path, by: str) -> None:
    """Only the registry's tags can report: file and list agree with each other."""
    uri, place = _uri(tmp_path), tmp_path
    save_student(place / "run" / "best")
    version = register(place / "run", "altered", alias="champion", tracking_uri=uri)
    true = open_client(uri).get_model_version("altered", version).tags["sha256.digests.json"]
    (stored,) = (place / "mlruns").rglob("models/m-*/artifacts/artifacts/package/model.safetensors")
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    listed = stored.with_name("digests.json")
    forged = json.loads(listed.read_text()) | {"model.safetensors": hashlib.sha256(data).hexdigest()}
    listed.write_text(json.dumps(forged))
    found = hashlib.sha256(listed.read_bytes()).hexdigest()
    port, log = free_port(), tmp_path / "log"
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    server = start_model_server("models:/altered@champion", log, port=port, uri=uri, environment=environment, by=by)
    try:
        assert server.wait(300) != 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, 9)
    refused = f"digests.json: its SHA-256 is {found}, and the registry's tag of models:/altered/1 states "
    assert f"{refused}{true}" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_our_server_states_where_it_is_and_ends_at_a_signal(
    place: Path, tmp_path: Path, number: signal.Signals
) -> None:
    model, log, port = str(place / "run" / "best"), tmp_path / "log", free_port()
    server = start_model_server(model, log, port=port, uri=_uri(place), environment={}, by="launch/serve.py")
    try:
        wait_until_healthy(server, port, log)
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
        with ExitStack() as stack:
            for sent in (b"", head, head + b"\r\n{"):  # none of them holds it up
                stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(sent)
            server.send_signal(number)
            assert server.wait(30) == 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, 9)
    first, *requests = log.read_text().splitlines()
    address = f"http://127.0.0.1:{port}"
    assert first == f"{model} at {address}/invocations, a page for people at {address}/; Ctrl-C ends it"
    assert {json.loads(line)["status"] for line in requests} <= {503}


@ours
@pytest.mark.parametrize(
    ("model", "limit", "reason"),
    [
        ("best", {"CCTS_AUDIO_ROOT": "/absent"}, "CCTS_AUDIO_ROOT='/absent': no such folder"),
        ("best", {"CCTS_MAX_SECONDS": "601"}, "CCTS_MAX_SECONDS=601: must be 1 to 600"),
        ("best", {"CCTS_MAX_REQUEST_BYTES": "many"}, "CCTS_MAX_REQUEST_BYTES='many': must be a number"),
        ("best", {}, "cannot listen on 127.0.0.1:"),  # the other server does
        ("absent", {}, "no such folder"),
    ],
)
def test_our_server_names_a_mistake_before_it_starts(
    place: Path, server: Server, model: str, limit: dict[str, str], reason: str
) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=re.escape(reason)):
        serve(str(place / "run" / model), host="127.0.0.1", port=port, environment=limit)
