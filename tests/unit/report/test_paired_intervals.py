"""Means with intervals, against numbers from textbooks and by hand."""

import math

import pytest

from ccts_dist.report.paired_intervals import estimate, paired, t_quantile


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_table(freedom, t):
    assert t_quantile(freedom) == pytest.approx(t, abs=5e-4)


def test_quantile_of_another_coverage():
    assert t_quantile(1, 0.5) == pytest.approx(1.0), "a quarter of a Cauchy variable lies above 1"
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)


def test_mean_and_interval_of_five_values_by_hand():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found is not None
    # Squares off the mean: 4 + 1 + 0 + 1 + 4 = 10, over 4; the root of 2.5 over that of 5 is the root of a half.
    assert (found.mean, found.count) == (3.0, 5)
    assert found.std == pytest.approx(math.sqrt(2.5))
    assert found.half_width == pytest.approx(2.776 * math.sqrt(0.5), abs=5e-4)


def test_one_value_has_no_interval_and_none_no_estimate():
    found = estimate([0.5])
    assert found is not None
    assert (found.mean, found.count) == (0.5, 1)
    assert math.isnan(found.std)
    assert math.isnan(found.half_width)
    assert estimate([]) is None


def test_differences_are_of_what_both_have():
    assert paired({17: 0.5, 18: 0.75, 19: 1.0}, {18: 0.5, 17: 0.25, 20: 9.0}) == [0.25, 0.25]
    assert paired({17: 0.5}, {18: 0.5}) == []
