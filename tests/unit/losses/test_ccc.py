import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.losses.ccc import (
    ccc_loss_from_sums,
    concordance,
    concordance_from_sums,
    concordance_gradient,
    concordance_sums,
)
from tests.tiers import examples

NAN = math.nan

# Worked by hand: means 2 and 3, variances 2/3 and 2, covariance 1, so CCC = 2 / (2/3 + 2 + 1) = 6/11.
PREDICTION = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
LABEL = torch.tensor([[2.0], [2.0], [5.0]], dtype=torch.float64)


def ones(rows: int) -> torch.Tensor:
    return torch.ones(rows)


def batch(rows: int, dims: int, *, missing: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.rand(rows, dims, generator=generator, dtype=torch.float64)
    label = torch.rand(rows, dims, generator=generator, dtype=torch.float64)
    label[torch.rand(rows, dims, generator=generator) < missing] = NAN
    return prediction, label


def test_concordance_of_three_utterances_is_the_value_worked_by_hand():
    assert concordance(PREDICTION, LABEL, eps=0.0).item() == pytest.approx(6 / 11, abs=1e-15)
    sums = concordance_sums(PREDICTION, LABEL, ones(3))
    assert sums[:, 0].tolist() == [3, 6, 9, 14, 33, 21]
    assert concordance_from_sums(sums, eps=0.0).item() == pytest.approx(6 / 11, abs=1e-15)


def test_gradient_for_three_utterances_is_the_one_worked_by_hand():
    # 2 / (3 * 11/3) * ((y - 3) - 6/11 * (p - 3))
    gradient = concordance_gradient(concordance_sums(PREDICTION, LABEL, ones(3)), PREDICTION, LABEL, ones(3), eps=0.0)
    assert gradient[:, 0].tolist() == pytest.approx([2 / 121, -10 / 121, 44 / 121], abs=1e-15)


def test_perfect_prediction_has_concordance_one_and_its_mirror_image_minus_one():
    label = torch.tensor([[0.2], [0.5], [0.8]])
    assert concordance(label, label).item() == pytest.approx(1, abs=1e-6)
    assert concordance(1 - label, label).item() == pytest.approx(-1, abs=1e-6)


def test_constant_prediction_of_a_constant_label_has_concordance_zero_and_a_finite_gradient():
    same = torch.full((4, 1), 0.5, dtype=torch.float64)
    sums = concordance_sums(same, same, ones(4))
    assert concordance(same, same).tolist() == [0]
    assert concordance_from_sums(sums).tolist() == [0]
    assert torch.isfinite(concordance_gradient(sums, same, same, ones(4))).all()


def test_missing_labels_are_left_out_per_dimension():
    prediction, label = batch(20, 3)
    whole = concordance(prediction, label)
    for dim in range(3):
        there = ~torch.isnan(label[:, dim])
        alone = concordance(prediction[there, dim, None], label[there, dim, None])
        assert whole[dim].item() == pytest.approx(alone.item(), abs=1e-14)


def test_sums_give_the_concordance_of_the_batch():
    prediction, label = batch(30, 3)
    expected = concordance(prediction, label)
    torch.testing.assert_close(
        concordance_from_sums(concordance_sums(prediction, label, ones(30))), expected, atol=1e-12, rtol=0
    )


def test_closed_form_gradient_equals_autograd():
    prediction, label = batch(25, 3)
    prediction.requires_grad_()
    concordance(prediction, label).sum().backward()
    closed = concordance_gradient(concordance_sums(prediction, label, ones(25)), prediction, label, ones(25))
    assert prediction.grad is not None
    torch.testing.assert_close(closed, prediction.grad, atol=1e-10, rtol=0)
    assert not closed.requires_grad


def test_concordance_passes_gradcheck():
    prediction, label = batch(6, 2)
    assert torch.autograd.gradcheck(lambda p: concordance(p, label), prediction.requires_grad_())


def test_dimension_with_one_label_contributes_nothing():
    prediction, label = batch(8, 2, missing=0)
    label[1:, 1] = NAN
    sums = concordance_sums(prediction, label, ones(8))
    assert concordance_from_sums(sums)[1] == 0
    assert concordance(prediction, label)[1] == 0
    assert (concordance_gradient(sums, prediction, label, ones(8))[:, 1] == 0).all()
    loss = ccc_loss_from_sums(sums, (0.5, 0.5))
    assert loss.item() == pytest.approx(0.5 * (1 - concordance(prediction, label)[0].item()), abs=1e-12)


def test_dimension_with_two_labels_counts_as_worked_by_hand():
    # Means .4 and .5, variances .04 and .16, covariance .08: 2 * .08 / (.04 + .16 + .01) = 16/21.
    prediction = torch.tensor([[0.2], [0.6], [0.7]], dtype=torch.float64)
    label = torch.tensor([[0.1], [0.9], [NAN]], dtype=torch.float64)
    sums = concordance_sums(prediction, label, ones(3))
    assert concordance(prediction, label, eps=0.0).item() == pytest.approx(16 / 21)
    assert concordance_from_sums(sums, eps=0.0).item() == pytest.approx(16 / 21)
    assert ccc_loss_from_sums(sums, (0.5,), eps=0.0).item() == pytest.approx(0.5 * 5 / 21)
    # 2 / (2 * .21) * ((y - .5) - 16/21 * (p - .5))
    gradient = concordance_gradient(sums, prediction, label, ones(3), eps=0.0)
    assert gradient[:, 0].tolist() == pytest.approx([-3.6 / 4.41, 6.8 / 4.41, 0])


def test_batch_without_any_label_has_loss_zero():
    prediction = torch.rand(3, 2)
    label = torch.full((3, 2), NAN)
    sums = concordance_sums(prediction, label, ones(3))
    assert ccc_loss_from_sums(sums, (0.5, 0.5)).item() == 0
    assert concordance_gradient(sums, prediction, label, ones(3)).abs().sum() == 0
    assert concordance(prediction.requires_grad_(), label).sum().item() == 0


def test_loss_weighs_each_dimension():
    prediction, label = batch(10, 2, missing=0)
    ccc = concordance(prediction, label)
    loss = ccc_loss_from_sums(concordance_sums(prediction, label, ones(10)), (0.25, 2.0))
    assert loss.item() == pytest.approx(0.25 * (1 - ccc[0].item()) + 2 * (1 - ccc[1].item()), abs=1e-12)


@pytest.mark.parametrize("value", [math.inf, -math.inf, NAN])
def test_row_of_weight_zero_reaches_neither_sums_nor_gradient_whatever_stands_in_it(value: float):
    prediction, label = batch(6, 3)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    spoilt = prediction.clone()
    spoilt[2] = value
    rest = torch.tensor([0, 1, 3, 4, 5])
    sums = concordance_sums(spoilt, label, weight)
    torch.testing.assert_close(sums, concordance_sums(prediction[rest], label[rest], ones(5)))
    gradient = concordance_gradient(sums, spoilt, label, weight)
    assert (gradient[2] == 0).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("value", [math.inf, NAN])
def test_prediction_that_is_not_finite_shows_in_the_loss(value: float):
    prediction, label = batch(6, 2, missing=0)
    prediction[3, 1] = value
    assert not torch.isfinite(ccc_loss_from_sums(concordance_sums(prediction, label, ones(6)), (0.5, 0.5)))


def test_sums_carry_no_gradient():
    prediction, label = batch(4, 2)
    assert not concordance_sums(prediction.requires_grad_(), label, ones(4)).requires_grad


def test_sums_of_float32_predictions_are_taken_in_float64():
    # 1 + 2^-30 is no float32: the square of a float32 sum would lose it.
    prediction = torch.full((3, 1), 1.0 + 2**-20)
    sums = concordance_sums(prediction, prediction, ones(3))
    assert sums[3].item() == 3 * (1.0 + 2**-20) ** 2


@examples(50)
@given(
    rows=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=st.integers(0, 1000),
)
def test_sums_over_any_split_into_parts_add_up_to_those_of_the_whole(rows: int, cuts: list[int], seed: int):
    prediction, label = batch(rows, 3, seed=seed)
    weight = torch.arange(rows).remainder(5).ne(0).float()
    bounds = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [concordance_sums(prediction[a:b], label[a:b], weight[a:b]) for a, b in pairwise(bounds)]
    torch.testing.assert_close(
        torch.stack(parts).sum(0), concordance_sums(prediction, label, weight), atol=1e-12, rtol=0
    )
