"""Tables."""

import pytest

from ccts_dist.report.markdown_table import format_table


def test_columns_are_aligned_and_numbers_are_set_to_the_right() -> None:
    assert format_table(("split", "CCC", "labels"), [("Test1", "0.61", 1200), ("Test2", "-", 3)]).splitlines() == [
        "| split |  CCC | labels |",
        "|:------|-----:|-------:|",
        "| Test1 | 0.61 |   1200 |",
        "| Test2 |    - |      3 |",
    ]


def test_a_bar_or_a_line_break_in_a_cell_does_not_break_the_table() -> None:
    assert format_table(("a",), [("x|y\nz",)]).splitlines()[2] == "| x\\|y z |"


def test_a_table_without_rows_is_its_header() -> None:
    assert format_table(("a", "b"), []).splitlines() == ["| a   | b   |", "|:----|:----|"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="table of 2 columns got the row"):
        format_table(("a", "b"), [("x",)])
