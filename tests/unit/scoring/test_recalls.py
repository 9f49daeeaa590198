"""Unweighted accuracy of categories, worked by hand, and the difference of two models' with its interval."""

from dataclasses import replace

import numpy as np
import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.scoring import MEAN, UAR, PredictionTable, gains_of, uar_difference, unweighted_accuracy
from tests.helpers.examples.tables import make_table

NAMES = ("glad", "sad", "tired")


def table_of(true: list[str | None], predicted: list[str], speakers: list[str]) -> PredictionTable:
    table = make_table().take(np.arange(len(true)))
    return replace(
        table.only([]),
        speakers=tuple(speakers),
        categories=tuple(true),
        predicted_categories=tuple(predicted),
        known_categories=NAMES,
    )


TRUE = ["glad", "glad", "glad", "glad", "sad", None, "other"]
SPEAKERS = ["a", "a", "b", "b", "c", "c", "c"]
GOOD = table_of(TRUE, ["glad", "glad", "glad", "sad", "sad", "sad", "glad"], SPEAKERS)
BAD = table_of(TRUE, ["glad", "sad", "sad", "sad", "glad", "glad", "glad"], SPEAKERS)


def test_unweighted_accuracy_is_the_mean_recall_of_the_categories_that_occur():
    # glad 3 of 4, sad 1 of 1; tired does not occur, and two rows have no category of the model's
    assert unweighted_accuracy(GOOD).value == pytest.approx((3 / 4 + 1) / 2)
    assert unweighted_accuracy(BAD).value == pytest.approx((1 / 4 + 0) / 2)


def test_difference_is_of_the_same_draws():
    found = uar_difference(GOOD, BAD)
    assert (found.target, found.first, found.second) == (UAR, pytest.approx(0.875), pytest.approx(0.125))
    assert found.gain.value == pytest.approx(0.75)
    assert found.gain.low <= 0.75 <= found.gain.high
    alone = uar_difference(GOOD, GOOD).gain
    assert (alone.value, alone.low, alone.high) == (0.0, 0.0, 0.0)


def test_models_without_a_common_target_are_compared_by_their_categories():
    both = replace(GOOD, targets=("valence",), labels=np.ones((7, 1)), predictions=np.ones((7, 1)))
    assert gains_of(both, BAD) == gains_of(GOOD, BAD) == (uar_difference(GOOD, BAD),)
    assert [one.target for one in gains_of(both, both)] == ["valence", MEAN]
    with pytest.raises(ConfigError, match="models of valence and of no target have none in common"):
        gains_of(both, replace(BAD, known_categories=()))


def test_other_categories_or_utterances_are_refused():
    with pytest.raises(ConfigError, match="glad, sad, tired and glad, sad have no unweighted accuracy in common"):
        uar_difference(GOOD, replace(BAD, known_categories=("glad", "sad")))
    with pytest.raises(ConfigError, match="7 and 6 utterances that are not the same"):
        uar_difference(GOOD, BAD.take(np.arange(6)))
