import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccts_dist.metrics import SplitSums

NAN = math.nan


def one_target(prediction: list[float], label: list[float], weight: list[float] | None = None) -> SplitSums:
    sums = SplitSums(("valence",))
    sums.add(
        torch.tensor(prediction)[:, None],
        torch.tensor(label)[:, None],
        torch.ones(len(label)) if weight is None else torch.tensor(weight),
    )
    return sums


def test_measures_of_three_utterances_are_those_worked_by_hand():
    # Means 2 and 3, variances 2/3 and 2, covariance 1; |p - y| is 1, 0, 2.
    sums = one_target([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])
    assert sums.ccc()["valence"] == pytest.approx(6 / 11, abs=1e-14)
    assert sums.pearson()["valence"] == pytest.approx(1 / math.sqrt(4 / 3), abs=1e-14)
    assert sums.mae()["valence"] == pytest.approx(1.0)
    assert sums.num_labels() == {"valence": 3}


def test_shift_lowers_concordance_but_not_pearson():
    sums = one_target([0.3, 0.5, 0.7], [0.1, 0.3, 0.5])
    assert sums.pearson()["valence"] == pytest.approx(1, abs=1e-6)
    variance = 0.08 / 3
    assert sums.ccc()["valence"] == pytest.approx(2 * variance / (2 * variance + 0.04), abs=1e-6)


def test_missing_labels_and_rows_of_weight_zero_do_not_count():
    sums = one_target([1.0, 2.0, math.inf, 0.3, 3.0], [2.0, 2.0, 9.0, NAN, 5.0], [1.0, 1.0, 0.0, 1.0, 1.0])
    assert sums.ccc()["valence"] == pytest.approx(6 / 11, abs=1e-14)
    assert sums.num_labels() == {"valence": 3}


@pytest.mark.parametrize("label", [[], [0.5], [NAN, 0.5]])
def test_target_with_fewer_than_two_labels_has_no_measure(label: list[float]):
    sums = one_target([0.1] * len(label), label)
    for measure in (sums.ccc(), sums.pearson(), sums.mae()):
        assert math.isnan(measure["valence"])


def test_constant_prediction_has_concordance_zero_and_no_correlation():
    sums = one_target([0.1] * 7, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert sums.ccc()["valence"] == pytest.approx(0, abs=1e-12)
    assert math.isnan(sums.pearson()["valence"])


def test_constant_label_met_exactly_has_concordance_zero():
    assert one_target([0.5, 0.5], [0.5, 0.5]).ccc()["valence"] == 0


@pytest.mark.parametrize("prediction", [NAN, math.inf])
def test_prediction_that_is_no_number_leaves_no_concordance(prediction: float):
    assert math.isnan(one_target([prediction, 0.5], [0.4, 0.6]).ccc()["valence"])


def test_sums_of_other_ranks_may_be_added():
    first, second = one_target([1.0], [2.0]), one_target([2.0, 3.0], [2.0, 5.0])
    whole = SplitSums.from_tensor(("valence",), first.to_tensor() + second.to_tensor())
    assert whole.ccc()["valence"] == pytest.approx(6 / 11, abs=1e-14)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 40), cut=st.integers(0, 40), seed=st.integers(0, 1000))
def test_batches_in_any_cut_give_the_measures_of_the_whole(rows: int, cut: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    prediction, label = torch.rand(rows, 2, generator=generator), torch.rand(rows, 2, generator=generator)
    whole, parts = SplitSums(("a", "b")), SplitSums(("a", "b"))
    whole.add(prediction, label, torch.ones(rows))
    for part in (slice(0, cut), slice(cut, rows)):
        parts.add(prediction[part], label[part], torch.ones(rows)[part])
    torch.testing.assert_close(parts.to_tensor(), whole.to_tensor(), atol=1e-12, rtol=0)
    assert parts.ccc() == pytest.approx(whole.ccc(), abs=1e-10)


def test_sums_of_two_splits_pooled_are_those_of_both_together():
    generator = torch.Generator().manual_seed(4)
    prediction, label = torch.rand(40, 2, generator=generator), torch.rand(40, 2, generator=generator)
    whole, parts = SplitSums(("a", "b")), [SplitSums(("a", "b")) for _ in range(2)]
    whole.add(prediction, label, torch.ones(40))
    for part, rows in zip(parts, (slice(0, 13), slice(13, 40)), strict=True):
        part.add(prediction[rows], label[rows], torch.ones(len(prediction[rows])))
    pooled = SplitSums.pooled([json.loads(json.dumps(part.by_target())) for part in parts])
    assert pooled.num_labels() == {"a": 40, "b": 40}
    for figure in ("ccc", "pearson", "mae"):
        assert getattr(pooled, figure)() == pytest.approx(getattr(whole, figure)(), abs=1e-12)
