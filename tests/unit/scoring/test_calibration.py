"""Calibration and confusion of a table, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from ccts_dist.evaluation.page import verdict
from ccts_dist.scoring import (
    MEAN,
    Difference,
    Interval,
    calibration_bins,
    confusion,
    in_bins,
    unweighted_accuracy,
)
from tests.helpers.examples.tables import make_table


def _table(predictions: list[float], labels: list[float]):
    count = len(predictions)
    return replace(
        make_table(1, count, targets=("valence",)),
        speakers=tuple(f"s{row % 4}" for row in range(count)),
        predictions=np.array(predictions)[:, None],
        labels=np.array(labels)[:, None],
    )


def test_bins_hold_the_mean_label_of_similar_predictions():
    # 20 utterances at 0.2 with labels 0.1 and 0.5, 20 at 0.8 with labels 0.9: means 0.3 and 0.9.
    bins = calibration_bins(_table([0.2] * 20 + [0.8] * 20, [0.1, 0.5] * 10 + [0.9] * 20), "valence")
    assert [one.num_labels for one in bins] == [20, 20]
    assert [one.prediction for one in bins] == pytest.approx([0.2, 0.8])
    assert [one.label.value for one in bins] == pytest.approx([0.3, 0.9])
    # Speakers 0 and 2 are at 0.1, 1 and 3 at 0.5: the mean of a draw lies between.
    low, high = bins[0].label.low, bins[0].label.high
    assert 0.1 <= low < 0.3 < high <= 0.5


def test_no_label_makes_no_bin_and_few_labels_make_one():
    assert calibration_bins(_table([0.2, 0.4], [np.nan, np.nan]), "valence") == ()
    (one,) = calibration_bins(_table([0.2, 0.4, np.nan], [0.1, 0.2, 0.3]), "valence")
    assert (one.num_labels, one.prediction) == (2, pytest.approx(0.3))


def test_bins_of_a_rating_are_classes_with_a_confusion_and_a_recall():
    table = in_bins(_table([0.1, 0.9, 0.8, 0.4, 0.5], [0.1, 0.2, 0.9, 0.7, np.nan]), "valence", [0.5], ["low", "high"])
    # Labels low, low, high, high; predicted low, high, high, low. The last has no label.
    assert confusion(table).by_class() == {"low": [1.0, 1.0], "high": [1.0, 1.0]}
    assert unweighted_accuracy(table).value == pytest.approx(0.5)
    assert confusion(table.take(np.array([0, 1, 2]))).by_class() == {"low": [1.0, 1.0], "high": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("gain", "low", "high", "words"),
    [
        (0.03, 0.01, 0.05, "A is better than B on Test1: mean CCC 0.630 against 0.600, difference +0.030 (+0.010 to"),
        (-0.03, -0.05, -0.01, "A is worse than B on Test1: mean CCC 0.570 against 0.600, difference \u22120.030"),
        (0.03, -0.01, 0.05, "A is not distinguishable from B on Test1"),
        (0.03, np.nan, np.nan, "A and B cannot be compared on Test1 without an interval: mean CCC 0.630"),
    ],
)
def test_verdict_follows_the_interval_of_the_mean(gain: float, low: float, high: float, words: str):
    found = Difference(target=MEAN, first=0.6 + gain, second=0.6, gain=Interval(value=gain, low=low, high=high))
    assert verdict("A", "B", [found], "Test1").startswith(words)
