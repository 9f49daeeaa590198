"""Answers as text: each format is what its readers expect, row by row."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest

from ccts_dist.inference.rows import FORMATS, RowText, row_text

COLUMNS = ("file", "valence", "category")
ROWS = [
    {"file": "a.wav", "valence": 4.123456789, "category": "calm"},
    {"file": 'späte "|", ha\nlo.wav', "valence": -0.5, "category": "ill at ease"},
]


def written(form: str, rows: Sequence[dict[str, Any]]) -> str:
    text = row_text(form, COLUMNS, {"file": 20, "category": 11})
    assert isinstance(text, RowText)
    return "".join([text.begin(), *map(text.row, rows), text.end()])


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
def test_json_and_its_lines_hold_the_rows_as_they_were(rows: list[dict[str, Any]]) -> None:
    assert json.loads(written("json", rows)) == rows
    lines = written("jsonl", rows).splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert written("json", rows).endswith("]\n")


@pytest.mark.parametrize("rows", [ROWS, []])
def test_csv_has_a_header_and_quotes_what_needs_it(rows: list[dict[str, Any]]) -> None:
    text = written("csv", rows)
    assert text.splitlines()[0] == "file,valence,category"
    read = list(csv.DictReader(io.StringIO(text)))
    assert [{**row, "valence": float(row["valence"])} for row in read] == rows


def test_a_table_is_aligned_before_its_last_row_has_come() -> None:
    assert written("table", ROWS).splitlines() == [
        "| file                 | valence | category    |",
        "|:---------------------|--------:|:------------|",
        "| a.wav                |    4.12 | calm        |",
        '| späte "\\|", ha lo.wav |   -0.50 | ill at ease |',
    ]
    assert len(written("table", []).splitlines()) == 2


def test_words_outside_ascii_stay_as_they_are() -> None:
    for form in FORMATS:
        assert "späte" in written(form, ROWS)


def test_a_number_that_json_does_not_know_is_not_written() -> None:
    for form in ("json", "jsonl"):
        with pytest.raises(ValueError, match="not JSON compliant"):
            written(form, [{**ROWS[0], "valence": float("nan")}])


HOSTILE = "a\u2028b\u0085c\x1b[31md\x7fe\u202ef\udce9 \u3000é.wav"


def test_file_names_with_controls_and_separators_of_lines_come_back_from_json() -> None:
    rows = [{**ROWS[0], "file": HOSTILE}, ROWS[0]]
    assert json.loads(written("json", rows)) == rows
    assert [json.loads(line) for line in written("jsonl", rows).splitlines()] == rows


@pytest.mark.parametrize("form", FORMATS)
def test_no_escape_sequence_reaches_a_terminal(form: str) -> None:
    text = written(form, [{**ROWS[0], "file": HOSTILE + "\x07\r\x9b2J"}])
    assert all(character == "\n" or character >= " " for character in text)
    assert not set(text) & set("\x1b\x7f\x85\x9b\u2028\u202e\udce9")
    assert "é.wav" in text
