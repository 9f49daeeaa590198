"""Forms with files: what is read, what is refused before it is parsed, and what windows return."""

import io
import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ccts_dist.errors import RequestError
from ccts_dist.inference.predictor import Predictor, load_student
from ccts_dist.inference.windows import Windows
from ccts_dist.serving.handler import Limits, Served
from ccts_dist.serving.multipart_body import boundary_of, form_of_body
from ccts_dist.serving.page import render_page
from ccts_dist.serving.server import application
from tests.helpers.models.small_student import save_student, student_config
from tests.tiers import examples

LIMITS = Limits(recordings=4, recording_bytes=200_000, seconds=5.0)
CATEGORIES = ("anger", "calm", "joy")


def small_student(folder: Path, targets: tuple[str, ...], categories: tuple[str, ...] = ()) -> Predictor:
    return load_student(save_student(folder, student_config(targets=targets, categories=categories)))


def wav(seconds: float, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).normal(0.0, 0.1, round(seconds * 16_000))
    file = io.BytesIO()
    soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return small_student(tmp_path_factory.mktemp("form") / "best", ("activation", "valence"))


@pytest.fixture(scope="module")
def client(student: Predictor) -> TestClient:
    return TestClient(application(Served(student, LIMITS), max_body_bytes=1_000_000), raise_server_exceptions=False)


def part(name: str, data: bytes, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


def parsed(body: bytes | bytearray, **limits: int):
    return form_of_body(body, b"B", **({"max_recordings": 4, "recording_bytes": 100} | limits))


def test_form_gives_files_in_order_and_windows() -> None:
    body = part("audio", b"one\r\n--Bother") + part("window", b" 2.5") + part("audio", b"", '; filename="a.wav"')
    form = parsed(body + part("hop", b"0.5") + part("path", "ä/b.wav".encode()) + b"--B--\r\n")
    assert list(form.rows) == [{"audio": b"one\r\n--Bother"}, {"audio": b""}, {"path": "ä/b.wav"}]
    assert form.windows == Windows(length=40_000, hop=8_000)
    assert parsed(part("audio", b"x") + b"--B--").windows is None
    assert parsed(bytearray(part("window", b"1") + b"--B--")).windows == Windows(length=16_000, hop=16_000)


REFUSED = {
    "nothing": (b"", "no closing boundary"),
    "no form": (b"hello", "not a form that can be read"),
    "cut": (part("audio", b"x"), "no closing boundary"),
    "large file": (part("audio", b"x" * 101) + b"--B--", "'audio' of the form: more than 100 bytes"),
    "long number": (part("window", b"1" * 33) + b"--B--", "'window' of the form: more than 32 bytes"),
    "no number": (part("window", b"two") + b"--B--", "b'two' is no number of seconds"),
    "not finite": (part("window", b"nan") + b"--B--", r"window nan: must be 0\.025 to 600 s"),
    "too short": (part("window", b"0.001") + b"--B--", "window 0.001: must be"),
    "hop alone": (part("hop", b"1") + b"--B--", "stands without 'window'"),
    "long hop": (part("window", b"1") + part("hop", b"2") + b"--B--", "hop 2: must be above 0 and at most"),
    "twice": (part("window", b"1") * 2 + b"--B--", "is given twice"),
    "unknown": (part("file", b"x") + b"--B--", "unknown field 'file'. Known fields: audio, path, window, hop"),
    "unknown and large": (part("file", b"x" * 99) + b"--B--", "unknown field 'file'"),
    "no name": (b"--B\r\n\r\nx\r\n--B--", "unknown field ''"),
    "many parts": (part("audio", b"x") * 7 + b"--B--", "more than 6 parts"),
    "many that only look so": (part("audio", b"\r\n--Bx" * 9) + b"--B--", "more than 6 parts"),
    "many headers": (b"--B\r\n" + b"A: b\r\n" * 9 + b"\r\nx\r\n--B--", "Maximum header count"),
    "long header": (b"--B\r\nA: " + b"b" * 5_000 + b"\r\n\r\nx\r\n--B--", "Maximum header size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_form_that_cannot_be_answered_is_refused_in_words(case: str) -> None:
    body, words = REFUSED[case]
    with pytest.raises(RequestError, match=words):
        parsed(body)


PIECES = [
    b"--B",
    b"\r\n",
    b"--",
    b"A",
    b":",
    b'Content-Disposition: form-data; name="audio"',
    b'; name="window"',
    b"\0",
]


@examples(200)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    with suppress(RequestError):
        assert len(parsed(b"".join(pieces)).rows) <= 4


@pytest.mark.parametrize(
    ("given_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=" + "x" * 71, None),
        ("multipart/mixed; boundary=abc", None),
        ("application/json", None),
    ],
)
def test_boundary_is_that_of_a_form(given_type: str, boundary: bytes | None) -> None:
    assert boundary_of(given_type) == boundary


def test_file_of_a_form_is_answered_as_its_base64(client: TestClient, student: Predictor) -> None:
    recordings = [wav(0.5), wav(0.8, 1)]
    answer = client.post("/invocations", files=[("audio", one) for one in recordings])
    assert answer.status_code == 200, answer.text
    expected = student.predict([io.BytesIO(one) for one in recordings])
    assert answer.json() == {"predictions": [pytest.approx(one, abs=1e-5) for one in expected]}


def test_windows_are_answered_one_by_one_and_their_mean_is_the_prediction(
    client: TestClient, student: Predictor
) -> None:
    samples = np.random.default_rng(0).integers(-3000, 3000, 36_000, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="FLAC")
    answer = client.post("/invocations", files={"audio": file.getvalue()}, data={"window": "1", "hop": "0.5"})
    assert answer.status_code == 200, answer.text
    (windows,), (mean,) = answer.json()["windows"], answer.json()["predictions"]
    # 2.25 s: windows from 0, .5 and 1 s, and one that ends with the recording.
    starts = [0.0, 0.5, 1.0, 1.25]
    assert [(one["start_s"], one["end_s"]) for one in windows] == [(start, start + 1.0) for start in starts]
    expected = student.predict([samples[round(16_000 * start) :][:16_000] for start in starts])
    for one, said in zip(windows, expected, strict=True):
        assert {name: one[name] for name in said} == pytest.approx(said, abs=1e-5)
    for name, value in mean.items():
        assert value == pytest.approx(sum(one[name] for one in expected) / 4, abs=1e-5)


def test_windows_beyond_what_a_request_may_compute_are_refused(client: TestClient) -> None:
    answer = client.post("/invocations", files={"audio": wav(4.0)}, data={"window": "1", "hop": "0.001"})
    assert answer.status_code == 400
    assert "3001 windows of together 3001 s, more than 1000 or 20 s" in answer.json()["message"]
    # A recording is answered whatever its length: a window as long as it is no more work than the whole.
    assert client.post("/invocations", files={"audio": wav(4.0)}, data={"window": "4"}).status_code == 200


def test_form_is_held_to_the_limits_and_its_faults_are_told(client: TestClient) -> None:
    for files, status, words in (
        ({"audio": b"no audio"}, 400, "recording 0: cannot be decoded"),
        ({"audio": b"x" * 200_001}, 400, "more than 200000 bytes"),
        ({"audio": b"x" * 1_000_001}, 413, "a body of more than 1000000 bytes"),
        ([("audio", wav(0.1))] * 5, 400, "5 recordings in one request, more than 4"),
        ({"other": b""}, 400, "unknown field 'other'"),
    ):
        answer = client.post("/invocations", files=files)
        assert answer.status_code == status
        assert words in answer.json()["message"]


def test_form_of_another_sites_page_is_refused(client: TestClient) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        answer = client.post("/invocations", files={"audio": wav(0.1)}, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status
    assert "a page of another site" in client.post(
        "/invocations", files={"audio": wav(0.1)}, headers={"Sec-Fetch-Site": "cross-site"}
    ).json()["message"]  # fmt: skip


def test_page_allows_itself_its_own_script_and_nothing_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(one.split(" ", 1) for one in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not any(words in page.text for words in ("https://", "src=", "onclick=", "style=", "@import"))
    assert re.findall(r"http://\S+", page.text) == ['http://www.w3.org/2000/svg",']  # a name, not an address
    assert client.get("/openapi.json").json()["paths"]["/"]


def test_names_of_a_model_are_shown_and_never_run(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script>&'
    student = small_student(tmp_path / "m", (), (hostile, "b"))
    document, _ = render_page(student, LIMITS, name=hostile)
    assert hostile not in document
    assert document.count("<script") == 1


def test_server_without_a_page(student: Predictor) -> None:
    bare = TestClient(application(Served(student, LIMITS), max_body_bytes=1_000, page=False))
    assert bare.get("/").status_code == 404
    assert "/" not in bare.get("/openapi.json").json()["paths"]


def test_model_of_categories_alone_is_served(tmp_path: Path) -> None:
    student = small_student(tmp_path / "best", (), CATEGORIES)
    client = TestClient(application(Served(student, LIMITS), max_body_bytes=1_000_000))
    answer = client.post("/invocations", files={"audio": wav(1.5)}, data={"window": "1"})
    (prediction,) = answer.json()["predictions"]
    assert list(prediction) == ["category", "p(anger)", "p(calm)", "p(joy)"]
    assert sum(prediction[f"p({name})"] for name in CATEGORIES) == pytest.approx(1.0)
    assert prediction["category"] == max(CATEGORIES, key=lambda name: prediction[f"p({name})"])
    assert len(answer.json()["windows"][0]) == 2
    whole = client.post("/invocations", files={"audio": wav(1.5)}).json()["predictions"]
    assert whole == [pytest.approx(one) for one in student.predict([io.BytesIO(wav(1.5))])]
    assert json.dumps(list(CATEGORIES))[1:-1].replace('"', "&#34;") in client.get("/").text


def test_document_lists_the_categories_and_their_probabilities(tmp_path: Path) -> None:
    served = Served(small_student(tmp_path / "best", ("valence",), CATEGORIES), LIMITS)
    schemas = TestClient(application(served, max_body_bytes=1_000)).get("/openapi.json").json()["components"]["schemas"]
    answer = schemas["Answer"]["properties"]["predictions"]["items"]["properties"]
    assert answer["category"] == {"enum": list(CATEGORIES)}
    assert answer["p(calm)"] == {"type": "number", "minimum": 0, "maximum": 1}
