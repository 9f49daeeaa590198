"""Cells of label files: text, ratings, and in words what is wrong with them."""

import csv
import json
import math
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccts_dist.errors import CorpusError
from ccts_dist.limits import LIMITS, open_regular

_RECORD_LINES = 50
"""A quoted cell may hold line breaks; a record of more lines than this is a stray quote."""


class RowError(Exception):
    """Why one row is omitted, and the file that was at fault."""

    def __init__(self, reason: str, source: str) -> None:
        super().__init__(reason)
        self.reason, self.source = reason, source


def parse_label(cell: str, scale: tuple[float, float]) -> float:
    """The label on 0..1 that a rating in text stands for.

    Raises:
        ValueError: what is wrong with the rating, in words that follow its name.
    """
    rating = parse_number(cell)
    low, high = scale
    if not low <= rating <= high:
        raise ValueError(f"{cell.strip()} is off the scale {low:g}..{high:g}")
    return (rating - low) / (high - low)


def parse_number(cell: str) -> float:
    """The number in a cell; infinity is one.

    Raises:
        ValueError: it is NaN, or no number; in words that follow its name.
    """
    try:
        number = math.nan if "_" in cell else float(cell)  # Python reads 1_0 as ten
    except ValueError:
        number = None
    if number is None or "_" in cell:
        raise ValueError(f"{printable(cell.strip())!r} is not a number")
    if math.isnan(number):
        raise ValueError("is NaN")
    return number


def json_row(text: str) -> dict[str, Any]:
    """The object on a line of JSON.

    Raises:
        ValueError: there is none, or a name comes twice in it; in words that follow the line's number.
    """
    try:
        row = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object: {printable(str(error))}") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names with their values; refused where one comes twice, since a parser would take the last in silence."""
    counts = Counter(name for name, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"{counts.most_common(1)[0][0]!r} comes twice")
    return dict(pairs)


def population_variance(values: Sequence[float]) -> float:
    """Mean squared distance from the mean."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def variances_of(ratings: Mapping[str, Sequence[float]], labels: Mapping[str, float]) -> dict[str, float]:
    """Variance of the raters for each target that somebody rated and that has a label."""
    return {target: population_variance(values) for target, values in ratings.items() if values and target in labels}


def text_fault(text: str) -> str:
    """The reason why a text cannot be stored, in words that follow its name; "" if it can."""
    if has_bad_bytes(text):
        return "is not UTF-8"
    if any(unicodedata.category(character) == "Cc" for character in text):
        return "holds a control character"
    return ""


def has_bad_bytes(text: str) -> bool:
    """True if the text holds surrogates: bytes that were not UTF-8, or half of a pair in JSON."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: str) -> str:
    """The text with bad bytes and control characters written out, so that it can be printed and stored."""
    shown = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, without its end; a byte order mark is passed over.

    Bytes that are not UTF-8 come through as lone surrogates.

    Raises:
        CorpusError: the file cannot be read.
    """
    for number, line in _whole_lines(path):
        yield number, line.rstrip("\r\n")


def _whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Like ``text_lines``, each line with its end."""
    most = LIMITS["line of a label table"]
    try:
        with open(open_regular(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(iter(lambda: file.readline(most + 1), ""), start=1):
                if len(line) > most:
                    raise CorpusError(
                        f"{path}: line {number} has more than {most:,} characters. Is it a table of labels?"
                    )
                yield number, line
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}). Mend its rights or its disk.") from error


def csv_lines(path: Path) -> Iterator[tuple[int, str, list[str] | csv.Error]]:
    """Number, text and cells of each line that is not blank; in place of the cells what keeps them from being read.

    A record is one line. Parsed as a whole, one stray quote would swallow the rows up to the next.
    """
    for number, record in text_lines(path):
        cells = split_record(record)
        if isinstance(cells, csv.Error) or any(cell.strip() for cell in cells):
            yield number, record, cells


def csv_records(path: Path, delimiter: str, num_cells: int) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Number of the first line, and cells, of each record that is not blank; a quoted cell keeps its line breaks.

    A record of several lines counts only if it has the header's number of cells: else its first line alone is at
    fault, and reading goes on with the next.

    Args:
        num_cells: of the header.
    """
    lines, waiting = _whole_lines(path), deque[tuple[int, str]]()
    while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
        number, record = line
        cells = split_record(record.rstrip("\r\n"), delimiter)
        if isinstance(cells, csv.Error) and record.count('"') % 2:
            cells = _record_over_lines(record, waiting, lines, delimiter, num_cells) or cells
        if isinstance(cells, csv.Error) or any(cell.strip() for cell in cells):
            yield number, cells


def table_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line, and cells by column, of each row of a CSV with a header; a quoted cell may hold line breaks.

    For tables that a corpus publishes as they are: one that is damaged is restored, not repaired row by row.

    Args:
        needed: columns that must be there, spelt so.

    Raises:
        CorpusError: no such table, a column is missing, or a row is none.
    """
    first = next((text for _, text in text_lines(path) if text.strip()), "")
    header = split_record(first)
    names = [] if isinstance(header, csv.Error) else [cell.strip() for cell in header]
    missing = [column for column in needed if column not in names]
    if missing:
        found = ", ".join(map(printable, names)) or "no header"
        raise CorpusError(f"{path}: looked for the columns {', '.join(missing)} and found {found}.")
    records = csv_records(path, ",", len(names))
    next(records)
    for line, cells in records:
        if isinstance(cells, csv.Error):
            raise CorpusError(f"{path}: {no_record(line, cells)}. Restore the file from the release.")
        if len(cells) != len(names):
            words = f"line {line} has {len(cells)} cells, and the header has {len(names)}"
            raise CorpusError(f"{path}: {words}. Restore the file from the release.")
        yield line, dict(zip(names, cells, strict=True))


def _record_over_lines(
    record: str, waiting: deque[tuple[int, str]], lines: Iterator[tuple[int, str]], delimiter: str, num_cells: int
) -> list[str] | None:
    """The cells of a record that begins with this line and goes on in those that follow; None if it does not.

    Takes the lines of the record off ``waiting``, and leaves there what it has only looked at.
    """
    for taken in range(1, _RECORD_LINES):
        if taken > len(waiting):
            line = next(lines, None)
            if line is None:
                return None
            waiting.append(line)
        record += waiting[taken - 1][1]
        if record.count('"') % 2 == 0:
            cells = split_record(record.rstrip("\r\n"), delimiter)
            if isinstance(cells, csv.Error) or len(cells) != num_cells:
                return None
            for _ in range(taken):
                waiting.popleft()
            return cells
    return None


def split_record(record: str, delimiter: str = ",") -> list[str] | csv.Error:
    """The cells of one record, or what keeps them from being read."""
    if record.count('"') % 2:
        return csv.Error("a quote is not closed")
    try:
        return next(csv.reader([record], strict=True, delimiter=delimiter), [])
    except csv.Error as error:
        return error


def no_record(line: int, error: csv.Error) -> str:
    """Why a line gives no row."""
    return f"line {line}: not a CSV record: {error}"
