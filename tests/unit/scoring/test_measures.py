import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.scoring.measures import ConfusionSums, SplitSums, binned, spearman
from tests.tiers import examples

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


@examples(30)
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


def rank_correlation(prediction: list[float], label: list[float]) -> float:
    return spearman(torch.tensor(prediction).double(), torch.tensor(label).double())


def test_rank_correlation_without_ties_is_that_worked_by_hand():
    # Ranks 1 2 4 3 and 1 3 2 4; differences 0 1 2 1: 1 - 6 * 6 / (4 * 15).
    assert rank_correlation([0.1, 0.2, 9.0, 0.3], [0.1, 0.5, 0.3, 0.9]) == pytest.approx(0.4, abs=1e-14)


def test_equal_values_share_the_mean_of_their_ranks():
    # Ranks 1.5 1.5 3 and 1 2 3; about 2: -.5 -.5 1 and -1 0 1; products add up to 1.5, squares to 1.5 and 2.
    assert rank_correlation([0.5, 0.5, 0.7], [0.1, 0.2, 0.3]) == pytest.approx(1.5 / math.sqrt(3), abs=1e-14)


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        ([0.1] * 7, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ([0.1, 0.2, 0.3], [0.7] * 3),
        ([0.1], [0.2]),
        ([], []),
        ([NAN, 0.1], [0.9, 0.2]),
    ],
)
def test_there_is_no_rank_correlation_of_what_is_constant_single_or_no_number(
    prediction: list[float], label: list[float]
):
    assert math.isnan(rank_correlation(prediction, label))


def confusion(true: list[int], predicted: list[int], classes: str = "abc") -> ConfusionSums:
    sums = ConfusionSums(classes)
    sums.add(torch.tensor(predicted, dtype=torch.int64), torch.tensor(true, dtype=torch.int64))
    return sums


def test_accuracies_and_f1_are_those_worked_by_hand():
    # a: 3 of 4 right, b: 1 of 2 right, c does not occur and is predicted once.
    sums = confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 2, 1, 0])
    assert sums.by_class() == {"a": [3, 0, 1], "b": [1, 1, 0], "c": [0, 0, 0]}
    assert sums.weighted_accuracy() == pytest.approx(4 / 6)
    assert sums.unweighted_recall() == pytest.approx((3 / 4 + 1 / 2) / 2)
    # F1 of a: 2 * 3 / (4 + 4); of b: 2 * 1 / (1 + 2); of c: 0.
    assert sums.macro_f1() == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)


def test_class_that_neither_occurs_nor_is_predicted_counts_nowhere():
    with_it, without = confusion([0, 1, 1], [0, 1, 0]), confusion([0, 1, 1], [0, 1, 0], "ab")
    for figure in ("weighted_accuracy", "unweighted_recall", "macro_f1"):
        assert getattr(with_it, figure)() == getattr(without, figure)()


def test_no_rows_have_no_accuracy():
    sums = confusion([], [])
    assert math.isnan(sums.weighted_accuracy())
    assert math.isnan(sums.unweighted_recall())
    assert math.isnan(sums.macro_f1())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40), st.integers(0, 40))
def test_confusion_adds_up_over_parts(rows: list[tuple[int, int]], cut: int):
    parts = [[list(column) for column in zip(*part, strict=True)] for part in (rows[:cut], rows[cut:]) if part]
    cells = torch.stack([confusion(*part).to_tensor() for part in parts]).sum(0)
    whole = confusion(*[list(column) for column in zip(*rows, strict=True)])
    assert ConfusionSums.from_tensor("abc", cells).by_class() == whole.by_class()


def test_value_on_an_edge_falls_into_the_outer_class():
    # On 1..5 with edges 2 and 4: [1, 2], (2, 4), [4, 5].
    ratings = torch.tensor([1.0, 2.0, 2.1, 3.9, 4.0, 5.0], dtype=torch.float64)
    labels = ((ratings - 1) / 4).float()
    assert binned(labels, [1 / 4, 3 / 4]).tolist() == [0, 0, 1, 1, 2, 2]
    assert binned(labels, []).tolist() == [0] * 6


@pytest.mark.parametrize("rating", range(1, 8))
def test_rating_on_an_edge_is_found_there_on_a_scale_of_seven(rating: int):
    edge = (rating - 1) / 6
    label = torch.tensor([edge], dtype=torch.float64).float()  # as labels are stored
    assert binned(label, [edge]).item() == (0 if edge <= 0.5 else 1)
