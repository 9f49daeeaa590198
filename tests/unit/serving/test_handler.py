"""What a served model refuses, and in which words, before MLflow and HTTP come into it."""

import asyncio
import base64
import io
import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ccts_dist.errors import ConfigError, RequestError
from ccts_dist.inference.predictor import Predictor, load_student
from ccts_dist.serving.handler import Limits, Served, read_limits, rows_of
from ccts_dist.serving.http_bodies import Bodies
from ccts_dist.serving.request_body import LongText
from ccts_dist.serving.server import application
from tests.helpers.models import model_shapes
from tests.helpers.models.small_student import save_student, student_config

MIB = 1 << 20


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Its encoder notes in each pass which frames are real."""
    speech = model_shapes.speech_config(shape=model_shapes.SPEECH_FAMILIES["data2vec"])
    return load_student(save_student(tmp_path_factory.mktemp("student") / "best", student_config(speech=speech)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An audio root with a recording, a pipe, and links that lead out of it; next to it what nobody shall have."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.wav").write_bytes(_wav(4_000))
    (root / "again.wav").symlink_to("deep/a.wav")
    (tmp_path / "secret.wav").write_bytes(_wav(4_000))
    (root / "out.wav").symlink_to(tmp_path / "secret.wav")
    (root / "up").symlink_to(tmp_path)
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe.wav")
    return root


@pytest.fixture
def served(student: Predictor, root: Path) -> Served:
    return Served(student, Limits(audio_root=root.resolve()))


def _wav(num_samples: int, *, seed: int = 0, rate: int = 16_000, channels: int = 1, format: str = "WAV") -> bytes:
    noise = np.random.default_rng(seed).normal(0.0, 0.1, (num_samples, channels))
    return _file(noise, rate, format)


def _file(samples: np.ndarray, rate: int, format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype="PCM_16")
    return file.getvalue()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def test_base64_bytes_and_a_path_of_one_file_are_answered_alike(student: Predictor, served: Served, root: Path) -> None:
    data = (root / "deep" / "a.wav").read_bytes()
    (expected,) = student.predict([root / "deep" / "a.wav"])
    rows: list[dict[str, Any]] = [{"audio": _b64(data)}, {"audio": data}, {"path": "deep/a.wav"}]
    rows += [{"path": "again.wav", "audio": None}, {"path": "./deep//a.wav", "audio": float("nan")}]
    for answer in served.answer(rows):
        assert answer == pytest.approx(expected, abs=1e-4)


def test_as_many_recordings_as_the_limit_are_answered_and_one_more_is_not(student: Predictor) -> None:
    served, rows = Served(student, Limits(recordings=2)), [{"audio": _wav(1_000)}] * 3
    assert len(served.answer(rows[:2])) == 2
    with pytest.raises(RequestError, match="3 recordings in one request, more than 2"):
        served.answer(rows)


def test_many_threads_get_the_answers_that_each_would_get_alone(student: Predictor, served: Served) -> None:
    """Without its lock, passes over this encoder take each other's padding."""
    requests = [[_wav(3_000 + 900 * n, seed=n), _wav(9_000 - 700 * n, seed=n + 50)] for n in range(4)]
    alone = [student.predict([io.BytesIO(data) for data in request]) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: served.answer([{"audio": data} for data in request]), requests * 3))
    for answers, expected in zip(together, alone * 3, strict=True):
        for answer, one in zip(answers, expected, strict=True):
            assert answer == pytest.approx(one, abs=1e-5)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "nothing": ([], "no recording: send rows with a column 'audio' or 'path'"),
    "too many": ([{"audio": "AAAA"}] * 33, "33 recordings in one request, more than 32"),
    "other column": ([{"sound": "AAAA"}], "recording 0: unknown column 'sound'"),
    "neither": ([{"audio": None}], "recording 0: has neither 'audio' and 'path'"),
    "both": ([{"audio": "AAAA", "path": "a.wav"}], "recording 0: has both 'audio' and 'path'"),
    "number": ([{"audio": 12}], "recording 0: 'audio' is int, must be a string"),
    "object": ([{"audio": {"a": 1}}], "recording 0: 'audio' is dict, must be a string"),
    "not base64": ([{"audio": "no base64!"}], r"recording 0: 'audio' is not base64 \(.*\)\. Encode the whole file"),
    "not ascii": ([{"audio": "päper"}], "recording 0: 'audio' is not base64"),
    "cut base64": ([{"audio": "AAAAA"}], "recording 0: 'audio' is not base64"),
    "empty": ([{"audio": ""}], "recording 0: is an empty file"),
    "no audio": ([{"audio": _b64(b"plain text, and rather long")}], "recording 0: cannot be decoded"),
    "second": ([{"audio": _b64(_wav(4_000))}, {"audio": _b64(_wav(399))}], "recording 1: lasts 399 samples"),
    "cut file": ([{"audio": _b64(_wav(4_000)[:5_000])}], "recording 0: is cut"),
    "path of a number": ([{"path": 7}], "recording 0: 'path' is int, must be a string"),
    "absolute": ([{"path": "/etc/passwd"}], "path '/etc/passwd' must be relative, without '..'"),
    "upwards": ([{"path": "deep/../../secret.wav"}], r"path 'deep/\.\./\.\./secret\.wav' must be relative"),
    "no path": ([{"path": ""}], "path '' must be relative"),
    "control": ([{"path": "a\0.wav"}], r"path 'a\\x00\.wav' must be relative"),
    "link out": ([{"path": "out.wav"}], r"path 'out\.wav' is no file below the audio root"),
    "folder link out": ([{"path": "up/secret.wav"}], "path 'up/secret.wav' is no file below the audio root"),
    "absent": ([{"path": "absent.wav"}], "path 'absent.wav' is no file below the audio root"),
    "too long a name": ([{"path": "a" * 5_000}], "is no file below the audio root"),
    "a path of a megabyte": (
        [{"path": LongText(memoryview(b"a" * MIB))}], "a path of 1048576 bytes is no file below the audio root",
    ),
    "circle": ([{"path": "circle"}], "path 'circle' is no file below the audio root"),
    "folder": ([{"path": "deep"}], "path 'deep' is no file below the audio root"),
    "pipe": ([{"path": "pipe.wav"}], r"path 'pipe\.wav' is no file below the audio root"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_what_is_refused_is_refused_with_the_reason(served: Served, kind: str) -> None:
    rows, reason = BAD_ROWS[kind]
    with pytest.raises(RequestError, match=reason):
        served.answer(rows)


def test_without_an_audio_root_no_path_is_read(student: Predictor) -> None:
    with pytest.raises(RequestError, match="this server reads no paths"):
        Served(student, Limits()).answer([{"path": "a.wav"}])


def test_a_file_that_the_server_may_not_read_is_refused(served: Served, root: Path) -> None:
    """A link that takes a file's place after it was looked at; the descriptor of another process would be as good."""
    moved = root / "deep" / "a.wav"
    moved.rename(root / "b.wav")
    moved.symlink_to(root / "b.wav")
    with pytest.raises(RequestError, match=r"recording 3: the file cannot be read \(.*symbolic links\)"):
        served._read(moved, 3)


def test_a_recording_one_byte_too_large_is_refused_however_it_comes(student: Predictor, root: Path) -> None:
    data = (root / "deep" / "a.wav").read_bytes()
    rows: tuple[dict[str, Any], ...] = ({"audio": data}, {"audio": _b64(data)}, {"path": "deep/a.wav"})
    exact = Served(student, Limits(recording_bytes=len(data), audio_root=root.resolve()))
    short = Served(student, Limits(recording_bytes=len(data) - 1, audio_root=root.resolve()))
    for row in rows:
        assert len(exact.answer([row])) == 1
        with pytest.raises(RequestError, match=f"recording 0: .* more than {len(data) - 1} bytes"):
            short.answer([row])


def test_base64_of_too_large_a_recording_is_refused_before_it_is_copied(student: Predictor) -> None:
    served, text = Served(student, Limits(recording_bytes=1_000)), LongText(memoryview(b"A" * 9_000))
    with pytest.raises(RequestError, match="recording 0: 9000 characters of base64, more than 1000 bytes"):
        served.answer([{"audio": text}])


def test_an_oversized_recording_is_refused_without_being_decoded(served: Served) -> None:
    rows = [{"audio": "A" * (64 * MIB)}]
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="recording 0: 67108864 characters of base64, more than 16777216 bytes"):
            served.answer(rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


def test_silence_in_many_channels_is_refused_before_it_fills_the_memory(served: Served) -> None:
    """Eight channels of two minutes at 96 kHz would be 740 MB of samples out of a file of 0.3 MB."""
    small = _file(np.zeros((120 * 96_000, 8), dtype=np.int16), 96_000, "FLAC")
    assert len(small) < MIB
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="recording 0: has 8 channels of 96000 Hz, more than 46080000 samples"):
            served.answer([{"audio": small}])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


def test_a_recording_that_lasts_too_long_is_refused(student: Predictor) -> None:
    served = Served(student, Limits(seconds=2.0))
    assert len(served.answer([{"audio": _wav(32_000)}])) == 1
    with pytest.raises(RequestError, match=r"recording 0: lasts 2\.1 s, more than 2 s"):
        served.answer([{"audio": _wav(33_600)}])


def test_limits_come_from_the_environment(tmp_path: Path) -> None:
    assert read_limits({}) == Limits(recordings=32, recording_bytes=16_777_216, seconds=120.0, audio_root=None)
    (tmp_path / "link").symlink_to(tmp_path)
    given = {
        "CCTS_MAX_RECORDINGS": "3",
        "CCTS_MAX_RECORDING_BYTES": "1000",
        "CCTS_MAX_SECONDS": "2.5",
        "CCTS_AUDIO_ROOT": str(tmp_path / "link"),
    }
    expected = replace(Limits(), recordings=3, recording_bytes=1_000, seconds=2.5, audio_root=tmp_path.resolve())
    assert read_limits(given) == expected


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("CCTS_MAX_RECORDINGS", "many", "CCTS_MAX_RECORDINGS='many': must be a number"),
        ("CCTS_MAX_RECORDINGS", "0", "CCTS_MAX_RECORDINGS=0: must be 1 to"),
        ("CCTS_MAX_SECONDS", "601", "CCTS_MAX_SECONDS=601: must be 1 to 600"),
        ("CCTS_MAX_SECONDS", "nan", "CCTS_MAX_SECONDS=nan: must be 1 to 600"),
        ("CCTS_AUDIO_ROOT", "/absent", "CCTS_AUDIO_ROOT='/absent': no such folder"),
    ],
)
def test_limits_that_cannot_be_are_refused_at_the_start(name: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_limits({name: text})


def test_rows_are_read_from_every_form_that_mlflow_makes_of_a_request() -> None:
    assert rows_of(pd.DataFrame({"audio": ["a", "b"]})) == [{"audio": "a"}, {"audio": "b"}]
    assert rows_of(pd.DataFrame([{"audio": ["a", "b"]}])) == [{"audio": "a"}, {"audio": "b"}]
    assert rows_of(pd.DataFrame({})) == []
    two = pd.DataFrame([{"audio": ["a", "b"], "path": ["c"]}])
    with pytest.raises(RequestError, match=r"columns of unlike length: \{'audio': 2, 'path': 1\}"):
        rows_of(two)


def test_mlflow_is_reported_a_status_of_400(served: Served) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="recording 0: 'audio' is int") as error:
        served.predict(pd.DataFrame({"audio": [1]}))
    assert error.value.get_http_status_code() == 400


def _post(served: Served, chunks: list[bytes], *, max_body_bytes: int) -> tuple[int, dict[str, Any]]:
    """Status and answer of our server, whose body comes in these chunks."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    asyncio.run(application(served, max_body_bytes=max_body_bytes)(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.parametrize(
    ("most_of_one", "status", "reason"),
    [
        (50, 413, "a body of more than 50 bytes"),
        (100, 503, "the server holds 0 bytes of bodies already. Send it again later."),
    ],
)
def test_a_refused_body_whose_rest_does_not_come_is_answered(
    most_of_one: int, status: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccts_dist.serving.http_bodies._ROOM_S", 0.0)
    chunks = [b"x" * 60]

    async def receive() -> dict[str, Any]:
        if not chunks:
            await asyncio.sleep(60.0)
        return {"type": "http.request", "body": chunks.pop(), "more_body": True}

    async def read() -> None:
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
        async with Bodies(most_of_one=most_of_one, most_of_all=55, seconds=0.3).read(request):
            pass

    with pytest.raises(HTTPException) as error:
        asyncio.run(read())
    assert (error.value.status_code, error.value.detail.startswith(reason)) == (status, True)


def test_a_body_far_too_large_is_not_read_to_its_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccts_dist.serving.http_bodies._DROPPED_BYTES", 100)
    chunks = [b"x" * 60] * 10
    status, answer = _post(served, chunks, max_body_bytes=50)
    assert (status, answer["message"].startswith("a body of more than 50 bytes")) == (413, True)


def test_a_body_one_byte_too_large_is_refused_by_our_server_however_it_comes(served: Served) -> None:
    body = json.dumps({"inputs": {"audio": _b64(_wav(4_000))}}).encode()
    for chunks in ([body], [body[:700], body[700:]]):
        status, answer = _post(served, chunks, max_body_bytes=len(body))
        assert (status, len(answer["predictions"])) == (200, 1)
        status, answer = _post(served, chunks, max_body_bytes=len(body) - 1)
        assert status == 413
        assert f"a body of more than {len(body) - 1} bytes" in answer["message"]
