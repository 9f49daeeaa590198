"""Raters' ceilings: by hand, and against raters who are drawn one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ccts_dist.scoring import PredictionTable, RaterColumns, rater_ceilings
from ccts_dist.scoring.measures import ccc_of, row_sums
from tests.helpers.examples.tables import make_table


def _table(labels: list[float], variance: list[float], count: list[int]) -> PredictionTable:
    rows = len(labels)
    raters = RaterColumns(variance=np.array(variance)[:, None], count=np.array(count))
    table = make_table(1, rows, targets=("valence",))
    return replace(
        table, labels=np.array(labels)[:, None], speakers=tuple(f"s{row}" for row in range(rows)), raters=raters
    )


def _ccc(first: np.ndarray, second: np.ndarray) -> float:
    columns = [torch.from_numpy(one.astype(np.float64))[:, None] for one in (first, second)]
    return float(ccc_of(row_sums(columns[0], columns[1], torch.ones(len(first))).sum(0)))


def test_two_utterances_of_two_raters_are_those_worked_by_hand():
    # Ratings 0 and .2, .8 and 1: means .1 and .9, variance .01 each. One rater against the other: mean square
    # (.01 + .01 + .81 + .01) / 2 = .42, mean product (0 + .8) / 2 = .4, mean .5: .15 / .17.
    # Expected rating: mean square (0 + .8) / 2 = .4, so .15; of the labels .41 - .25 = .16: .3 / .31.
    (found,) = rater_ceilings(_table([0.1, 0.9], [0.01, 0.01], [2, 2]))
    assert (found.target, found.num_labels) == ("valence", 2)
    assert found.one.value == found.half.value == pytest.approx(0.15 / 0.17)
    assert found.noise.value == pytest.approx(0.3 / 0.31)


def test_half_of_three_and_of_four_raters_are_those_worked_by_hand():
    # Ratings 0, 0, .6 (mean .2, variance .08): half of three is one; the mean of the others is half as far away.
    # Ratings .4, .4, .8, .8 (mean .6, variance .04): half is two, whose variance is .04 / 2 * 2 / 3 = .04 / 3.
    # Squares of the half: .04 + .08 and .36 + .04 / 3, of the others: .04 + .02 and .36 + .04 / 3; products: .04 - .04
    # and .36 - .04 / 3. Less the squared mean, .16: variances .26 / 3 and .17 / 3, covariance .04 / 3.
    (found,) = rater_ceilings(_table([0.2, 0.6], [0.08, 0.04], [3, 4]))
    assert found.half.value == pytest.approx(2 * 0.04 / (0.26 + 0.17))


def test_raters_who_are_drawn_have_these_cccs_on_average():
    draws = np.random.default_rng(0)
    count = draws.integers(2, 9, 3_000)
    truth = draws.normal(0.5, 0.15, len(count))
    ratings = [truth[row] + draws.normal(0, 0.1 + 0.1 * (row % 2), n) for row, n in enumerate(count)]
    label = np.array([one.mean() for one in ratings])
    (found,) = rater_ceilings(_table(label.tolist(), [float(one.var()) for one in ratings], count.tolist()))
    measured: dict[str, list[float]] = {"one": [], "half": []}
    for _ in range(60):
        mixed = [draws.permutation(one) for one in ratings]
        for name, sizes in (("one", np.ones_like(count)), ("half", count // 2)):
            some = np.array([one[:size].mean() for one, size in zip(mixed, sizes, strict=True)])
            others = np.array([one[size:].mean() for one, size in zip(mixed, sizes, strict=True)])
            measured[name].append(_ccc(some, others))
    for name, values in measured.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert getattr(found, name).value == pytest.approx(np.mean(values), abs=4 * error + 1 / len(count)), name
        assert error < 0.003
    # A model that knows what raters answer on average; the figure rests on one draw of the raters.
    assert found.noise.low < _ccc(truth, label) < found.noise.high
    assert found.noise.high - found.noise.low < 0.03


def test_one_rater_alone_an_unknown_number_and_no_variance_count_for_nothing():
    (found,) = rater_ceilings(_table([0.1, 0.9, 0.5, 0.4, 0.3], [0.01, 0.01, 0.0, 0.2, np.nan], [2, 2, 1, 0, 5]))
    assert found.num_labels == 2
    assert found.one.value == pytest.approx(0.15 / 0.17)
    assert rater_ceilings(_table([0.1, 0.9], [0.01, np.nan], [2, 2])) == ()
    assert rater_ceilings(make_table()) == ()
