"""Progress without a terminal: plain lines, seldom, and nothing on ranks that are silent."""

import io
import sys

from ccts_dist import progress
from ccts_dist.progress import Progress, log


def test_plain_lines_count_and_show_figures(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(3, "reading", unit="shards") as bar:
        bar.advance(status="loss 0.5")
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reading: 1/3 shards")
    assert "loss 0.5" in lines[0]
    assert lines[-1].startswith("reading: 3/3 shards")


def test_lines_are_seldom(capsys):
    with Progress(1000, "reading", unit="shards") as bar:
        for _ in range(1000):
            bar.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_invisible_progress_and_lines_state_nothing(capsys):
    with Progress(3, "reading", unit="shards", visible=False) as bar:
        bar.advance(3)
    log("a line", visible=False)
    assert capsys.readouterr().err == ""


def test_work_that_goes_on_counts_from_where_it_stood(capsys):
    with Progress(10, "reading", unit="shards", start=8) as bar:
        bar.advance(2)
    assert capsys.readouterr().err.startswith("reading: 10/10 shards")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal_counts_and_shows_figures(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(3, "reading", unit="shards") as bar:
        bar.advance(status="loss 0.5")
        bar.advance(2)
    shown = sys.stderr.getvalue().split("\r")
    assert shown[1].startswith("reading:   0%")
    assert shown[-1].startswith("reading: 100%")
    assert "3/3" in shown[-1]
    assert "loss 0.5" in shown[-1]
