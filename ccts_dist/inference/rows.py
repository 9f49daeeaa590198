"""Answers as text, row by row as they come: a table, JSON, JSON lines, CSV."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ccts_dist.errors import CONTROLS, without_controls

FORMATS = ("table", "json", "jsonl", "csv")


@runtime_checkable
class RowText(Protocol):
    """One format of a sequence of rows; what the three return, one after the other, is the whole text."""

    def begin(self) -> str:
        """Text before the rows."""
        ...

    def row(self, row: Mapping[str, Any]) -> str:
        """One row, by column."""
        ...

    def end(self) -> str:
        """Text behind the rows."""
        ...


def row_text(form: str, columns: Sequence[str], widths: Mapping[str, int]) -> RowText:
    """The format of that name, one of ``FORMATS``.

    Args:
        columns: in order.
        widths: of the table's columns of words, which are set to the left: characters of the longest one.
    """
    if form == "table":
        return _Table(columns, widths)
    if form == "csv":
        return _Csv(columns)
    return _JsonLines() if form == "jsonl" else _Json()


class _Table:
    """Markdown, aligned as far as is known before the last row has come."""

    def __init__(self, columns: Sequence[str], widths: Mapping[str, int]) -> None:
        self._columns = columns
        # Ratings have two places: "-1.25" is the widest of the usual ones.
        self._cells: list[Callable[[str], str]] = [
            _to_the_left(max(3, len(name), widths[name])) if name in widths else _to_the_right(max(5, len(name)))
            for name in columns
        ]
        self._words = [name in widths for name in columns]

    def begin(self) -> str:
        header = [cell(name) for cell, name in zip(self._cells, self._columns, strict=True)]
        rule = (
            ":" + "-" * (len(name) + 1) if words else "-" * (len(name) + 1) + ":"
            for name, words in zip(header, self._words, strict=True)
        )
        return f"| {' | '.join(header)} |\n|{'|'.join(rule)}|\n"

    def row(self, row: Mapping[str, Any]) -> str:
        cells = (cell(_cell(row[name])) for cell, name in zip(self._cells, self._columns, strict=True))
        return f"| {' | '.join(cells)} |\n"

    def end(self) -> str:
        return ""


def _to_the_left(width: int) -> Callable[[str], str]:
    return lambda text: text.ljust(width)


def _to_the_right(width: int) -> Callable[[str], str]:
    return lambda text: text.rjust(width)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return without_controls(" ".join(str(value).split())).replace("|", "\\|")


class _Csv:
    """A header and a line per row, quoted where needed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def begin(self) -> str:
        return _csv_line(self._columns)

    def row(self, row: Mapping[str, Any]) -> str:
        return _csv_line([row[name] for name in self._columns])

    def end(self) -> str:
        return ""


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    # A quoted line break is CSV; any other control character would reach the terminal of whoever looks at it.
    safe = [without_controls(cell, keep="\n") if isinstance(cell, str) else cell for cell in cells]
    csv.writer(line, lineterminator="\n").writerow(safe)
    return line.getvalue()


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON in which characters outside of ASCII stand as they are, but for controls and separators of lines.

    Those are escaped, so that a line is a line to every reader, and a terminal does not act on a file's name.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    breaks = "\n" if indent is not None else ""
    return CONTROLS.sub(lambda found: found[0] if found[0] in breaks else f"\\u{ord(found[0]):04x}", text)


class _JsonLines:
    """An object a line."""

    def begin(self) -> str:
        return ""

    def row(self, row: Mapping[str, Any]) -> str:
        return json_text(row) + "\n"

    def end(self) -> str:
        return ""


class _Json:
    """An array of objects, each on lines of its own."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self) -> str:
        return "["

    def row(self, row: Mapping[str, Any]) -> str:
        before = ",\n" if self._begun else "\n"
        self._begun = True
        return before + "\n".join(f"  {line}" for line in json_text(row, indent=2).split("\n"))

    def end(self) -> str:
        return "\n]\n" if self._begun else "]\n"
