"""The server's page in a real browser: a file, the microphone, the curve, what is played, and what goes wrong."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from ccts_dist.inference.predictor import Predictor
from ccts_dist.serving.handler import Limits
from tests.helpers.processes.browser import CONTRAST, OVERFLOWING, WIDTHS, open_browser
from tests.unit.serving.test_form import CATEGORIES, small_student
from tests.unit.serving.test_server import Running

LIMITS = Limits(recording_bytes=400_000, seconds=20.0)
FAKE_MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser(*FAKE_MICROPHONE) as browser:
        yield browser


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return small_student(tmp_path_factory.mktemp("page") / "best", ("activation", "valence", "dominance"), CATEGORIES)


@pytest.fixture(scope="module")
def address(student: Predictor) -> Iterator[str]:
    """A server, behind the prefix ``/emotion`` as a proxy would put it."""
    running = Running(student, LIMITS)
    inner = running.app._asgi
    running.app._asgi = Starlette(routes=[Mount("/emotion", app=inner), Mount("/", app=inner)])
    yield f"http://127.0.0.1:{running.port}"
    running.end()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds that grow louder."""
    path = tmp_path_factory.mktemp("sound") / "a <b>.flac"
    noise = np.random.default_rng(0).normal(0.0, 0.1, 160_000) * np.linspace(0.05, 1.0, 160_000)
    soundfile.write(path, noise, 16_000)
    return path


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., tuple[Page, list[str]]]]:
    """Opens a page; next to it, what the browser complains of and what it asks others for."""
    contexts = []

    def open_at(address: str, *, size: str = "wide", scheme: str = "light") -> tuple[Page, list[str]]:
        context = browser.new_context(
            viewport={"width": WIDTHS[size], "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        contexts.append(context)
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda asked: None if asked.url.startswith((address, "blob:", "data:")) else
                said.append(f"asked for {asked.url[:80]}"))  # fmt: skip
        page.goto(address, wait_until="load")
        return page, said

    yield open_at
    for context in contexts:
        context.close()


def send(page: Page, path: Path) -> None:
    page.set_input_files("#file", str(path))
    expect(page.locator("#result")).to_be_visible(timeout=60_000)
    expect(page.locator("#said")).to_have_text("")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_file_is_answered_by_figures_and_a_curve(
    open_page: Callable[..., tuple[Page, list[str]]], address: str, recording: Path, student: Predictor, size: str,
    scheme: str,
):  # fmt: skip
    page, said = open_page(f"{address}/emotion/", size=size, scheme=scheme)
    assert page.evaluate(OVERFLOWING) == []
    send(page, recording)
    assert page.inner_text("#name") == "a <b>.flac, 10.0 s"
    samples = soundfile.read(recording, dtype="int16")[0]
    expected = student.predict([samples[start : start + 32_000] for start in range(0, 128_001, 16_000)])
    shown = [float(words) for words in page.locator("#targets b").all_inner_texts()]
    assert shown == pytest.approx([np.mean([one[name] for one in expected]) for name in student.targets], abs=0.006)
    assert sorted(page.locator("#categories .value span").all_inner_texts()) == sorted(CATEGORIES)
    widths = page.locator("#targets .bar div").evaluate_all(
        "all => all.map(one => one.offsetWidth / one.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([(value - 1) / 6 for value in shown], abs=0.02)
    lines = page.locator("#curve polyline").evaluate_all("all => all.map(one => one.getAttribute('points'))")
    assert [len(line.split()) for line in lines] == [9, 9, 9]
    assert "Curve of 9 windows over 10.0 s; means: activation" in (page.get_attribute("#curve", "aria-label") or "")
    ground, contrast = page.evaluate(CONTRAST)
    assert ground < 0.1 if scheme == "dark" else ground > 0.9
    assert contrast >= 4.5
    assert page.evaluate(OVERFLOWING) == []
    assert said == []


def test_chosen_stretch_is_heard_and_then_it_stops(
    open_page: Callable[..., tuple[Page, list[str]]], address: str, recording: Path
):
    page, said = open_page(f"{address}/")
    send(page, recording)
    box = page.locator("#curve").bounding_box()
    assert box is not None
    left, across = box["x"] + 46, box["width"] - 58
    page.mouse.move(left + 0.4 * across, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(left + 0.46 * across, box["y"] + 70)
    page.mouse.up()
    assert (page.input_value("#from"), page.input_value("#to")) == ("4.0", "4.6")
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Pause")
    expect(page.locator("#play")).to_have_text("Play", timeout=10_000)
    assert page.evaluate("audio.currentTime") == pytest.approx(4.6, abs=0.3)
    page.fill("#to", "99")
    page.locator("#to").blur()
    assert page.input_value("#to") == "10.0"
    page.click("#whole")
    assert page.evaluate("chosen") == [0, 10]
    page.select_option("#window", "5")
    expect(page.locator("#curve polyline >> nth=0")).to_have_attribute("points", re.compile(r"^(\S+ ?){3}$"))
    assert said == []


def test_last_window_that_is_near_the_one_before_is_a_mark_without_a_line(
    open_page: Callable[..., tuple[Page, list[str]]], address: str, tmp_path: Path
):
    page, said = open_page(f"{address}/")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(1).normal(0.0, 0.1, 163_200), 16_000)
    send(page, tmp_path / "a.wav")
    lines = page.locator("#curve polyline").evaluate_all("all => all.map(one => one.getAttribute('points'))")
    assert [len(line.split()) for line in lines] == [9, 9, 9], "2 s, every second; the tenth begins at 8.2 s"
    assert page.locator("#curve circle.last").count() == 3
    assert said == []


def test_microphone_is_recorded_as_a_file_that_the_server_decodes(
    open_page: Callable[..., tuple[Page, list[str]]], address: str
):
    page, said = open_page(f"{address}/")
    page.click("#record")
    expect(page.locator("#record")).to_have_text(re.compile("Stop, [1-9] s"), timeout=20_000)
    page.click("#record")
    expect(page.locator("#result")).to_be_visible(timeout=60_000)
    assert re.fullmatch(r"recording\.wav, \d\.\d s", page.inner_text("#name"))
    assert page.evaluate("shown.duration") > 0.5
    assert page.inner_text("#record") == "Record"
    assert said == []


def test_fault_is_one_line_beside_the_button(
    open_page: Callable[..., tuple[Page, list[str]]], address: str, tmp_path: Path
):
    page, _ = open_page(f"{address}/", size="narrow")
    (tmp_path / "a.wav").write_text("no audio")
    (tmp_path / "b.wav").write_bytes(b"RIFF" + bytes(400_001))
    (tmp_path / "c.m4a").write_text("no audio")
    file = io.BytesIO()
    soundfile.write(file, np.zeros(21 * 8_000), 8_000, format="FLAC")
    (tmp_path / "d.flac").write_bytes(file.getvalue())
    for name, words in (
        ("a.wav", "a.wav: cannot be decoded"),
        ("b.wav", "0.4 MiB are more than this server takes"),
        ("c.m4a", "this browser cannot decode the recording"),
        ("d.flac", "20 s"),
    ):
        page.set_input_files("#file", str(tmp_path / name))
        expect(page.locator("#said.error")).to_contain_text(words, timeout=60_000)
        assert "\n" not in page.inner_text("#said")
        assert page.get_attribute("#said", "role") == "alert"
        assert page.evaluate(OVERFLOWING) == []
    assert page.locator("#result").is_hidden()
    assert page.locator("#file").is_enabled()
    page.route("**/invocations", lambda route: route.abort())
    page.set_input_files("#file", str(tmp_path / "a.wav"))
    expect(page.locator("#said.error")).to_have_text("the server does not answer. Is it still running?")


def test_categories_alone_have_a_curve_of_their_probabilities(
    open_page: Callable[..., tuple[Page, list[str]]], recording: Path, tmp_path: Path
):
    running = Running(small_student(tmp_path / "best", (), CATEGORIES), LIMITS)
    try:
        page, said = open_page(f"http://127.0.0.1:{running.port}/", size="narrow")
        send(page, recording)
        assert page.locator("#targets .figure").count() == 0
        shares = [float(words.removesuffix(" %")) for words in page.locator("#categories b").all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=2)
        assert shares == sorted(shares, reverse=True)
        assert page.locator("#curve polyline").count() == 3
        assert page.locator("#curve text").first.text_content() == "0 %"
        assert page.evaluate(OVERFLOWING) == []
        assert said == []
    finally:
        running.end()
