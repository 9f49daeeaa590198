"""Tables in plain text that are Markdown as well."""

from collections.abc import Sequence
from typing import Any


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned Markdown table without a trailing newline; columns of numbers are set to the right.

    >>> print(format_table(("split", "CCC"), [("Test1", "0.61"), ("Test2", "0.5")]))
    | split |  CCC |
    |:------|-----:|
    | Test1 | 0.61 |
    | Test2 |  0.5 |

    Args:
        header: one word per column.
        rows: cells as they shall be read; anything with a ``str``.

    Raises:
        ValueError: a row with more or fewer cells than the header.
    """
    table = [[_cell(cell) for cell in row] for row in (header, *rows)]
    for row in table:
        if len(row) != len(header):
            raise ValueError(f"a table of {len(header)} columns got the row {row!r}")
    widths = [max(3, *(len(row[column]) for row in table)) for column in range(len(header))]
    right = [bool(rows) and all(_is_number(row[column]) for row in table[1:]) for column in range(len(header))]
    lines = []
    for row in table:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        lines.append(f"| {' | '.join(cells)} |")
    rule = (
        "-" * (width + 1) + ":" if to_right else ":" + "-" * (width + 1)
        for width, to_right in zip(widths, right, strict=True)
    )
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").rstrip("%"))
    except ValueError:
        return cell in ("", "-")
    return True
