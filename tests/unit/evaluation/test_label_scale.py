"""What an evaluation states of single utterances, and on which scale."""

from dataclasses import replace

import numpy as np
import pytest

from ccts_dist.evaluation.extracts import worst_utterances
from ccts_dist.evaluation.label_scale import ends_of, on_scale
from tests.helpers.examples.tables import make_table


def test_rating_and_variance_of_raters_are_reported_on_the_corpus_scale():
    # On 1..7 a label of .25 is 2.5, and a variance of .01 is 36 times that.
    assert on_scale("valence", 0.25, (1.0, 7.0)) == pytest.approx(2.5)
    assert on_scale("valence.variance", 0.01, (1.0, 7.0)) == pytest.approx(0.36)
    assert on_scale("valence.7.share", 0.25, (1.0, 7.0)) == 0.25, "a share is no rating"
    assert on_scale("valence", np.array([0.0, 1.0]), (1.0, 7.0)).tolist() == [1, 7]


def test_variance_is_largest_with_half_of_the_raters_at_each_end():
    assert ends_of("valence", (1.0, 7.0)) == (1, 7)
    assert ends_of("valence.variance", (1.0, 7.0)) == (0, np.var([1, 7]))
    assert ends_of("valence.7.share", (1.0, 7.0)) == (0, 1)


def test_worst_utterances_come_first_and_those_nobody_rated_not_at_all():
    table = make_table(1, 4)
    nan = np.nan
    labels = np.array([[0.5, 0.5, 0.5], [0.5, nan, nan], [nan, nan, nan], [0.0, 0.0, nan]])
    predictions = np.array([[0.5, 0.8, 0.5], [0.7, 0.0, 0.0], [1.0, 1.0, 1.0], [0.3, 0.5, 0.0]])
    found = worst_utterances(replace(table, labels=labels, predictions=predictions))
    # Mean errors .1, .2, none, .4.
    assert [one.row for one in found] == [3, 1, 0]
    assert [one.error for one in found] == pytest.approx([0.4, 0.2, 0.1])
    assert [one.row for one in worst_utterances(table, 2)] == [one.row for one in worst_utterances(table)][:2]
