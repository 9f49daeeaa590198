"""The page of an evaluation in a real browser: wide and narrow, light and dark."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from ccts_dist.evaluation.page import make_page
from tests.helpers.examples.pages import HOSTILE, LONG_KEY, whole_beside, whole_result
from tests.helpers.processes.browser import CONTRAST, OVERFLOWING, WIDTHS, open_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    result = whole_result()
    (folder / "report.html").write_text(make_page(result, whole_beside(result, folder)), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(params=[(size, scheme) for size in WIDTHS for scheme in ("light", "dark")], ids="-".join)
def shown(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[tuple[Page, list[str]]]:
    """The page as it is shown, and whatever the browser has reported or asked for."""
    size, scheme = request.param
    context = browser.new_context(viewport={"width": WIDTHS[size], "height": 800}, color_scheme=scheme)
    page, printed = context.new_page(), []
    page.on("console", lambda message: printed.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: printed.append(f"error: {error}"))
    page.on("request", lambda asked: printed.append(f"asked for {asked.url[:80]}"))
    page.goto(report.as_uri(), wait_until="load")
    yield page, printed
    context.close()


def test_nothing_overflows_nothing_is_reported_and_nothing_is_asked_for(shown: tuple[Page, list[str]], report: Path):
    page, printed = shown
    assert page.evaluate(OVERFLOWING) == []
    kept = [
        words for words in printed if words != f"asked for {report.as_uri()[:80]}" and "asked for data:" not in words
    ]
    assert kept == []


def test_printed_page_holds_every_table(browser: Browser, report: Path):
    page = browser.new_page(viewport={"width": 703, "height": 1000})  # A4 within its margins
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    assert page.evaluate(OVERFLOWING) == []
    page.close()


def test_element_that_sticks_out_would_be_found(browser: Browser, report: Path):
    page = browser.new_page(viewport={"width": WIDTHS["narrow"], "height": 800})
    page.goto(report.as_uri())
    for hurt in ("document.querySelector('figure').style.width = '500px'",
                 "document.querySelector('figcaption').style.cssText = 'width: 9px; white-space: nowrap'"):  # fmt: skip
        assert page.evaluate(OVERFLOWING) == []
        page.evaluate(hurt)
        assert page.evaluate(OVERFLOWING) != []
        page.reload()
    page.close()


def test_words_can_be_read_on_their_ground(shown: tuple[Page, list[str]], request: pytest.FixtureRequest):
    page, _ = shown
    ground, contrast = page.evaluate(CONTRAST)
    dark = "dark" in request.node.name
    assert ground < 0.1 if dark else ground > 0.9
    assert contrast >= 4.5


def test_every_picture_has_words_and_fits_its_place(shown: tuple[Page, list[str]]):
    page, _ = shown
    pictures = page.locator("svg, img, audio, video, canvas")
    found = pictures.evaluate_all("all => all.map(one => [one.tagName, one.getAttribute('aria-label') || one.alt])")
    # 3 predictions, 3 calibrations, A and B, A and the teacher, 3 residuals, 3 noises, 3 parts, 3 curves; a player for
    # each of five utterances.
    assert [kind for kind, _ in found].count("svg") == 20
    assert [kind for kind, _ in found].count("AUDIO") == 5
    words = [alternative for _, alternative in found]
    assert all(len(one) > 20 for one in words)
    assert len(set(words)) == len(words)
    boxes = page.locator("svg[role=img]").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert min(boxes) > 200


def test_tables_that_are_cut_can_be_scrolled_by_keys(shown: tuple[Page, list[str]]):
    page, _ = shown
    for region in page.locator(".wide").all():
        assert region.get_attribute("tabindex") == "0"
        assert region.evaluate("one => getComputedStyle(one).overflowX") == "auto"


def test_keys_and_words_of_a_corpus_are_shown_and_never_run(shown: tuple[Page, list[str]]):
    page, _ = shown
    assert page.title() == "Evaluation of emotion/4"
    assert page.locator("script, img").count() == 0
    cells = page.locator("td, th").all_inner_texts()
    assert any(HOSTILE in cell for cell in cells)
    assert any(LONG_KEY in cell for cell in cells)


def test_summary_has_the_verdict_and_differences_are_a_minus_the_other(shown: tuple[Page, list[str]]):
    page, _ = shown
    summary = page.locator("#summary")
    verdict = summary.locator(".verdict").inner_text()
    assert re.fullmatch(
        r"A is better than B on Test1: mean CCC 0\.\d{3} against 0\.\d{3}, difference \+0\.\d{3} \(.* to .*\)\.",
        verdict,
    )
    assert summary.locator(".card").count() == 3
    for name, rival in (("A and B", "B"), ("A and of the teacher", "teacher")):
        rows = page.locator(f".wide[aria-label*='{name}'] tbody tr").all()
        assert len(rows) == 4
        for row in rows:
            ours, theirs, gain = (
                float(cell.split()[0].replace("\u2212", "-")) for cell in row.locator("td").all_inner_texts()
            )
            assert gain == pytest.approx(ours - theirs, abs=1.6e-3), rival


def test_contents_lead_to_sections_and_terms_are_explained(shown: tuple[Page, list[str]]):
    page, _ = shown
    targets = page.locator("nav a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert len(targets) == 11
    assert all(page.locator(target).count() == 1 for target in targets)
    page.locator("summary", has_text="Terms of this page").click()
    assert page.get_by_text("Concordance correlation coefficient: 1 where").is_visible()
    assert page.evaluate(OVERFLOWING) == []


def test_bins_have_confusion_tables_whose_rows_add_up(shown: tuple[Page, list[str]]):
    page, _ = shown
    tables = page.locator(".wide[aria-label^='Confusion']").all()
    assert len(tables) == 3
    for row in tables[0].locator("tbody tr").all():
        shares = [float(cell) for cell in row.locator(".cell").all_inner_texts()]
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(1, abs=0.016)


def test_print_has_no_contents_and_opens_what_is_folded(browser: Browser, report: Path):
    page = browser.new_page(viewport={"width": 720, "height": 1000})
    page.emulate_media(media="print")
    page.goto(report.as_uri())
    assert not page.locator("nav").is_visible()
    assert not page.locator("audio").first.is_visible()
    assert page.locator("dl").first.evaluate("one => one.getBoundingClientRect().height") > 100
    page.close()


def test_ids_of_pictures_do_not_meet(browser: Browser, report: Path):
    page = browser.new_page()
    page.goto(report.as_uri())
    ids = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(ids) > 100
    assert len(set(ids)) == len(ids)
    page.close()
