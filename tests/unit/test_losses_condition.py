import math

import pytest
import torch

from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.losses.condition import (
    condition_sums,
    fit_condition,
    gate_any_dimension,
    gate_none,
    kept_rows,
    residuals,
)
from ccts_dist.records import Condition

NAN = math.nan

# Worked by hand: mean p .5, mean y .4, cov .25/3, var p .5/3: w = .5, b = .4 - .25 = .15;
# residuals (-.05, .1, -.05), deviation sqrt(.015 / 3).
PREDICTION = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
LABEL = torch.tensor([[0.2], [0.3], [0.7]], dtype=torch.float64)


def one_dimension(*, deviation: float = 0.1) -> Condition:
    return Condition(
        targets=("valence",), w=(0.5,), b=(0.15,), deviation=(deviation,), num_rows=(3,), splits=("Train",)
    )


def test_fit_of_three_utterances_is_the_one_worked_by_hand():
    condition = fit_condition(condition_sums(PREDICTION, LABEL), ("valence",), ("Train",))
    assert condition.w[0] == pytest.approx(0.5, abs=1e-14)
    assert condition.b[0] == pytest.approx(0.15, abs=1e-14)
    assert condition.deviation[0] == pytest.approx(math.sqrt(0.005), abs=1e-14)
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
    assert condition.deviation == pytest.approx(residual.std(0, unbiased=False).tolist(), abs=1e-10)


def test_teacher_that_predicts_one_value_gets_slope_zero_and_the_labels_deviation():
    prediction = torch.full((3, 1), 0.4)
    condition = fit_condition(condition_sums(prediction, LABEL), ("valence",), ("Train",))
    assert condition.w == (0.0,)
    assert condition.b[0] == pytest.approx(0.4)
    assert condition.deviation[0] == pytest.approx(LABEL.std(unbiased=False).item())


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
    kept = gate_any_dimension(residual, (0.1, 0.2), 2.0)
    assert kept.tolist() == [True, False, False, False, True]


def test_residual_of_just_the_threshold_is_kept():
    assert gate_any_dimension(torch.tensor([[0.5], [-0.5]]), (0.25,), 2.0).tolist() == [True, True]


def test_missing_label_passes_the_gate_but_not_for_other_dimensions():
    residual = torch.tensor([[NAN, 0.1], [NAN, 0.5], [NAN, NAN]])
    assert gate_any_dimension(residual, (0.1, 0.1), 2.0).tolist() == [True, False, True]


def test_gate_none_keeps_all():
    assert gate_none(torch.tensor([[9.0], [NAN]])).tolist() == [True, True]


def test_rows_of_weight_zero_are_never_kept():
    weight = torch.tensor([1.0, 0.0, 1.0])
    condition = one_dimension(deviation=0.04)
    kept = {
        gate: kept_rows(gate, 2.0, condition, PREDICTION, LABEL, weight).tolist() for gate in ("none", "any-dimension")
    }
    # Residuals -.05, .1, -.05 against 2 * .04.
    assert kept == {"none": [True, False, True], "any-dimension": [True, False, True]}
    assert kept_rows("any-dimension", 2.0, condition, PREDICTION, LABEL, torch.ones(3)).tolist() == [True, False, True]
    assert kept_rows("any-dimension", 1.0, condition, PREDICTION, LABEL, weight).tolist() == [False, False, False]


def test_unknown_gate_is_refused():
    with pytest.raises(ConfigError, match=r"distill.gate='all' is not a gate. Use one of: none, any-dimension"):
        kept_rows("all", 2.0, one_dimension(), PREDICTION, LABEL, torch.ones(3))


def test_independent_gaussian_residuals_lose_thirteen_in_a_hundred():
    # 1 - P(|z| <= 2)^3 = 1 - .9545^3 = .1304
    generator = torch.Generator().manual_seed(7)
    prediction = torch.rand(100_000, 3, generator=generator)
    label = 0.4 * prediction + 0.3 + 0.1 * torch.randn(100_000, 3, generator=generator)
    condition = fit_condition(condition_sums(prediction, label), ("activation", "valence", "dominance"), ("Train",))
    kept = kept_rows("any-dimension", 2.0, condition, prediction, label, torch.ones(100_000))
    assert 1 - kept.double().mean().item() == pytest.approx(0.130, abs=0.005)
