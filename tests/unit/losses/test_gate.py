import math
from functools import reduce

import numpy as np
import pytest
import torch

from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.losses.gate import (
    ROW_GATES,
    apply_gate,
    condition_sums,
    fit_condition,
    gate_any_dimension,
    gate_none,
    gate_per_dimension,
    gate_soft,
    gated_on,
    prediction_weights,
    residuals,
    row_weights,
    widest_residual,
)
from ccts_dist.records import Condition

NAN = math.nan

# Worked by hand: mean p .5, mean y .4, cov .25/3, var p .5/3: w = .5, b = .4 - .25 = .15;
# residuals (-.05, .1, -.05), deviation sqrt(.015 / 3).
PREDICTION = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
LABEL = torch.tensor([[0.2], [0.3], [0.7]], dtype=torch.float64)


def one_dimension(*, residual_std: float = 0.1) -> Condition:
    return Condition(
        targets=("valence",), w=(0.5,), b=(0.15,), residual_std=(residual_std,), num_rows=(3,), splits=("Train",)
    )


def test_fit_of_three_utterances_is_the_one_worked_by_hand():
    condition = fit_condition(condition_sums(PREDICTION, LABEL), ("valence",), ("Train",))
    assert condition.w[0] == pytest.approx(0.5, abs=1e-14)
    assert condition.b[0] == pytest.approx(0.15, abs=1e-14)
    assert condition.residual_std[0] == pytest.approx(math.sqrt(0.005), abs=1e-14)
    assert condition.num_rows == (3,)
    assert condition.targets == ("valence",)
    assert condition.splits == ("Train",)


def test_residuals_are_those_worked_by_hand():
    residual = residuals(one_dimension(), PREDICTION, LABEL)
    assert residual[:, 0].tolist() == pytest.approx([-0.05, 0.1, -0.05], abs=1e-15)


def test_fit_leaves_out_missing_labels_per_dimension():
    prediction = torch.cat([PREDICTION, torch.tensor([[0.9]], dtype=torch.float64)])
    label = torch.cat([LABEL, torch.tensor([[NAN]], dtype=torch.float64)])
    assert fit_condition(condition_sums(prediction, label), ("valence",), ("Train",)).w[0] == pytest.approx(0.5)


def test_fit_is_least_squares_with_residuals_of_mean_zero():
    generator = torch.Generator().manual_seed(1)
    prediction = torch.rand(500, 2, generator=generator)
    label = (0.3 * prediction + 0.2 + 0.1 * torch.randn(500, 2, generator=generator)).double()
    condition = fit_condition(condition_sums(prediction, label), ("a", "b"), ("Train",))
    residual = residuals(condition, prediction, label)
    design = torch.stack([prediction[:, 0].double(), torch.ones(500, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design, label[:, 0]).solution
    assert condition.w[0] == pytest.approx(solution[0].item(), abs=1e-10)
    assert condition.b[0] == pytest.approx(solution[1].item(), abs=1e-10)
    assert residual.mean(0).abs().max() < 1e-12
    assert condition.residual_std == pytest.approx(residual.std(0, unbiased=False).tolist(), abs=1e-10)


def test_teacher_that_predicts_one_value_gets_slope_zero_and_the_labels_deviation():
    prediction = torch.full((3, 1), 0.4)
    condition = fit_condition(condition_sums(prediction, LABEL), ("valence",), ("Train",))
    assert condition.w == (0.0,)
    assert condition.b[0] == pytest.approx(0.4)
    assert condition.residual_std[0] == pytest.approx(LABEL.std(unbiased=False).item())


def test_fit_of_two_labels_is_refused_and_names_the_target():
    label = LABEL.clone()
    label[0] = NAN
    with pytest.raises(TeacherError, match=r"'valence' has 2 labels in the splits Train.*at least 3"):
        fit_condition(condition_sums(PREDICTION, label), ("valence",), ("Train",))


@pytest.mark.parametrize("value", [math.inf, NAN])
def test_fit_of_predictions_that_are_not_finite_is_refused(value: float):
    prediction = PREDICTION.clone()
    prediction[1] = value
    with pytest.raises(TeacherError, match=r"'valence'.*not all finite"):
        fit_condition(condition_sums(prediction, LABEL), ("valence",), ("Train",))


def test_one_dimension_beyond_the_threshold_leaves_the_row_out():
    residual = torch.tensor([[0.19, 0.3], [0.21, 0.0], [-0.21, 0.0], [0.0, -0.41], [0.0, 0.39]])
    gate_mask = gate_any_dimension(residual, (0.1, 0.2), 2.0)
    assert gate_mask.tolist() == [True, False, False, False, True]


def test_residual_of_just_the_threshold_is_kept():
    assert gate_any_dimension(torch.tensor([[0.5], [-0.5]]), (0.25,), 2.0).tolist() == [True, True]


def test_missing_label_passes_the_gate_but_not_for_other_dimensions():
    residual = torch.tensor([[NAN, 0.1], [NAN, 0.5], [NAN, NAN]])
    assert gate_any_dimension(residual, (0.1, 0.1), 2.0).tolist() == [True, False, True]


def test_gate_per_dimension_decides_each_dimension_by_itself_and_a_missing_label_passes():
    residual = torch.tensor([[0.19, 0.3], [0.21, 0.5], [NAN, -0.41]])
    assert gate_per_dimension(residual, (0.1, 0.2), 2.0).tolist() == [[True, True], [False, False], [True, False]]


def test_widest_residual_is_in_deviations_and_knows_no_missing_labels():
    residual = torch.tensor([[0.1, -0.6], [0.3, NAN], [NAN, NAN], [0.0, 0.0]], dtype=torch.float64)
    assert widest_residual(residual, (0.1, 0.2)).tolist() == pytest.approx([3, 3, 0, 0])


def test_deviation_of_zero_makes_any_residual_infinitely_wide_and_none_of_zero():
    residual = torch.tensor([[0.0], [1e-9], [NAN]])
    assert widest_residual(residual, (0.0,)).tolist() == [0, math.inf, 0]
    assert gate_soft(residual, (0.0,)).tolist() == [1, 0, 1]


def test_soft_gate_gives_the_shares_worked_by_hand():
    # Widest residuals of 3, 1, 0 deviations; a missing label counts as 0.
    residual = torch.tensor([[0.1, -0.6], [-0.1, 0.1], [NAN, 0.0]], dtype=torch.float64)
    expected = [math.exp(-4.5), math.exp(-0.5), 1]
    assert gate_soft(residual, (0.1, 0.2)).tolist() == pytest.approx(expected, abs=1e-12)


def test_gate_none_keeps_all():
    assert gate_none(torch.tensor([[9.0], [NAN]])).tolist() == [True, True]


def test_rows_of_weight_zero_are_never_kept():
    weight = torch.tensor([1.0, 0.0, 1.0])
    condition = one_dimension(residual_std=0.04)
    gate_mask = {
        gate: apply_gate(gate, 2.0, condition, PREDICTION, LABEL, weight).tolist() for gate in ("none", "any-dimension")
    }
    # Residuals -.05, .1, -.05 against 2 * .04.
    assert gate_mask == {"none": [True, False, True], "any-dimension": [True, False, True]}
    assert apply_gate("any-dimension", 2.0, condition, PREDICTION, LABEL, torch.ones(3)).tolist() == [True, False, True]
    assert apply_gate("any-dimension", 1.0, condition, PREDICTION, LABEL, weight).tolist() == [False, False, False]


def test_soft_and_per_dimension_keep_nothing_of_rows_of_weight_zero_and_all_of_rows_without_labels():
    weight, label = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[0.2], [0.3], [NAN]], dtype=torch.float64)
    soft = apply_gate("soft", 2.0, one_dimension(residual_std=0.05), PREDICTION, label, weight)
    assert soft.tolist() == pytest.approx([math.exp(-0.5), 0, 1])
    each = apply_gate("per-dimension", 0.5, one_dimension(residual_std=0.05), PREDICTION, label, weight)
    assert each.tolist() == [[False], [False], [True]]


def test_shares_of_rows_and_of_predictions_in_every_form_of_kept():
    weight = torch.tensor([1.0, 0.0, 1.0])
    hard, soft = torch.tensor([True, True, False]), torch.tensor([0.5, 0.5, 0.25], dtype=torch.float64)
    each = torch.tensor([[True, False], [True, True], [False, False]])
    assert row_weights(hard, weight).tolist() == [1, 0, 0]
    assert row_weights(soft, weight).tolist() == [0.5, 0, 0.25]
    assert row_weights(each, weight).tolist() == [1, 0, 1], "the embedding term takes every row that counts"
    assert prediction_weights(hard, weight, 2).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert prediction_weights(soft, weight, 2).tolist() == [[0.5, 0.5], [0, 0], [0.25, 0.25]]
    assert prediction_weights(each, weight, 2).tolist() == [[1, 0], [0, 0], [0, 0]]


def test_decisions_that_come_with_the_batch_are_kept_where_rows_count():
    admitted, weight = torch.tensor([True, False, True]), torch.tensor([1.0, 1.0, 0.0])
    for gate in ROW_GATES:
        gate_mask = apply_gate(gate, 2.0, one_dimension(residual_std=1e-6), PREDICTION, LABEL, weight, admitted)
        assert gate_mask.tolist() == [True, False, False], gate


def test_gate_on_one_target_lets_every_residual_of_the_others_pass():
    condition = Condition(
        targets=("a", "b"), w=(1.0, 1.0), b=(0.0, 0.0), residual_std=(0.1, 0.1), num_rows=(9, 9), splits=("Train",)
    )
    prediction, label = torch.tensor([[0.0, 0.9], [0.9, 0.0], [0.0, 0.0]]), torch.zeros(3, 2)
    for targets, expected in ((("a",), [True, False, True]), (("b",), [False, True, True]), ((), [False, False, True])):
        on = gated_on(condition, targets)
        assert apply_gate("any-dimension", 2.0, on, prediction, label, torch.ones(3)).tolist() == expected
        soft = apply_gate("soft", 2.0, on, prediction, label, torch.ones(3))
        assert soft.tolist() == pytest.approx([1.0 if one else math.exp(-40.5) for one in expected], rel=1e-5)
    each = apply_gate("per-dimension", 2.0, gated_on(condition, ("b",)), prediction, label, torch.ones(3))
    assert each.tolist() == [[True, False], [True, True], [True, True]]


def test_unknown_gate_is_refused():
    with pytest.raises(ConfigError, match=r"distill.gate='all' is not a gate. Use one of: none, any-dimension, per-d"):
        apply_gate("all", 2.0, one_dimension(), PREDICTION, LABEL, torch.ones(3))


def test_independent_gaussian_residuals_lose_thirteen_in_a_hundred():
    # 1 - P(|z| <= 2)^3 = 1 - .9545^3 = .1304
    generator = torch.Generator().manual_seed(7)
    prediction = torch.rand(100_000, 3, generator=generator)
    label = 0.4 * prediction + 0.3 + 0.1 * torch.randn(100_000, 3, generator=generator)
    condition = fit_condition(condition_sums(prediction, label), ("activation", "valence", "dominance"), ("Train",))
    gate_mask = apply_gate("any-dimension", 2.0, condition, prediction, label, torch.ones(100_000))
    assert 1 - gate_mask.double().mean().item() == pytest.approx(0.130, abs=0.005)


def left_out_by_least_squares(prediction: np.ndarray, label: np.ndarray, threshold: float) -> np.ndarray:
    """Where a residual is beyond the threshold: by numpy's own least squares, in float64, per dimension."""
    beyond = np.zeros(label.shape, bool)
    for j in range(label.shape[1]):
        there = ~np.isnan(label[:, j])
        p, y = prediction[there, j].astype(np.float64), label[there, j]
        design = np.stack([p, np.ones_like(p)], axis=1)
        residual = design @ np.linalg.lstsq(design, y, rcond=None)[0] - y
        beyond[there, j] = np.abs(residual) > threshold * np.sqrt(np.mean(residual**2))
    return beyond


@pytest.mark.parametrize("threshold", [1.0, 2.0])
@pytest.mark.parametrize("draw", range(5))
def test_gates_leave_out_exactly_what_an_independent_least_squares_reference_leaves_out(draw: int, threshold: float):
    generator = np.random.default_rng(draw)
    prediction = generator.random((2_500, 3)).astype(np.float32)
    noise = generator.laplace(scale=[0.05, 0.1, 0.2], size=prediction.shape)
    label = np.clip(0.6 * prediction + 0.2 + noise, 0, 1)
    label[generator.random(label.shape) < 0.1] = NAN
    label[generator.random(len(label)) < 0.02] = NAN
    beyond = left_out_by_least_squares(prediction, label, threshold)
    p, y = torch.from_numpy(prediction), torch.from_numpy(label)
    parts = [condition_sums(p[rows], y[rows]) for rows in (slice(0, 7), slice(7, 1_900), slice(1_900, None))]
    condition = fit_condition(reduce(torch.add, parts), ("a", "b", "c"), ("Train",))
    for labels in (y, y.float()):  # as the index has them, and as a batch has them
        gate_mask = apply_gate("any-dimension", threshold, condition, p, labels, torch.ones(len(y)))
        np.testing.assert_array_equal(np.flatnonzero(~gate_mask.numpy()), np.flatnonzero(beyond.any(1)))
        each = apply_gate("per-dimension", threshold, condition, p, labels, torch.ones(len(y)))
        np.testing.assert_array_equal(~each.numpy(), beyond)
    assert 0.05 < beyond.any(1).mean() < 0.7
    assert np.isnan(label).all(1).sum() > 10, "utterances without any label are among them, and are kept"
