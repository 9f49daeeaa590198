"""The condition without its outliers: a fit worked by hand, and what it finds that the plain one masks."""

import pytest
import torch

from ccts_dist.losses.gate import apply_gate, condition_sums, fit_condition
from ccts_dist.teacher.robust import fit_without_outliers

NAN = float("nan")


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)[:, None]


# Four points .1 off the line y = p, each twice, and one far above it.
PREDICTION = column(0, 0, 1, 1, 0, 0, 1, 1, 0.5)
LABEL = column(0.1, -0.1, 1.1, 0.9, 0.1, -0.1, 1.1, 0.9, 3.0).double()


def test_fit_without_the_outlier_is_the_one_worked_by_hand():
    # With it: w = 1, b = 7/9 - 1/2; residuals .18 and .38 of the eight, 2.2 of the ninth; s = 1.4826 * .378 = .56, so
    # that it is beyond 3 s. Without: w = 1, b = 0, and the median of .1 eight times and 2.5 is .1.
    fit = fit_without_outliers(PREDICTION, LABEL, ("valence",), ("Train",))
    assert fit.w[0] == pytest.approx(1, abs=1e-9)
    assert fit.b[0] == pytest.approx(0, abs=1e-9)
    assert fit.residual_std[0] == pytest.approx(0.14826, rel=1e-6)
    assert fit.num_rows == (8,)
    plain = fit_condition(condition_sums(PREDICTION, LABEL), ("valence",), ("Train",))
    assert plain.residual_std[0] == pytest.approx(
        ((4 * (1.6 / 9) ** 2 + 4 * (3.4 / 9) ** 2 + (20 / 9) ** 2) / 9) ** 0.5
    )


def test_scale_is_the_middle_one_of_an_odd_number_of_residuals():
    # On the line y = p but for pairs .1, .2 and .3 above and below it: 0 .1 .1 .2 .2 .3 .3, of which the fourth is .2.
    prediction = column(0, 0, 0.5, 0.5, 1, 1, 0.5)
    label = column(0.1, -0.1, 0.7, 0.3, 1.3, 0.7, 0.5).double()
    assert fit_without_outliers(prediction, label, ("valence",), ("Train",)).residual_std[0] == pytest.approx(
        1.4826 * 0.2, rel=1e-6
    )


def test_missing_labels_and_other_targets_play_no_part():
    prediction = torch.cat([PREDICTION, column(0.9)]).expand(-1, 2)
    label = torch.cat([LABEL, column(NAN).double()])
    label = torch.cat([label, torch.where(torch.isnan(label), 0.5, label * 0 + prediction[:, :1] / 2 + 0.01)], dim=1)
    label[::2, 1] += 0.02
    both = fit_without_outliers(prediction, label, ("valence", "other"), ("Train",))
    alone = fit_without_outliers(PREDICTION, LABEL, ("valence",), ("Train",))
    assert (both.w[0], both.b[0], both.residual_std[0]) == pytest.approx(
        (alone.w[0], alone.b[0], alone.residual_std[0])
    )


def test_residuals_of_which_half_are_zero_are_measured_by_their_standard_deviation():
    prediction = column(0, 0.25, 0.5, 0.75, 1)
    exact = fit_without_outliers(prediction, prediction.double(), ("valence",), ("Train",))
    assert exact.residual_std[0] == pytest.approx(0, abs=1e-8)
    assert exact.num_rows == (5,)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_robust_gate_finds_wrong_transcripts_that_mask_each_other(share: float):
    generator = torch.Generator().manual_seed(5)
    printed = torch.rand(4_000, 1, generator=generator)
    wrong = torch.rand(4_000, generator=generator) < share
    read = torch.where(wrong[:, None], torch.rand(4_000, 1, generator=generator), printed)
    label = (printed + 0.05 * torch.randn(4_000, 1, generator=generator)).double()
    far = wrong & ((read - printed).abs()[:, 0] > 0.3)
    plain = fit_condition(condition_sums(read, label), ("valence",), ("Train",))
    robust = fit_without_outliers(read, label, ("valence",), ("Train",))
    found = {}
    for name, condition, threshold in (("plain", plain, 2.0), ("robust", robust, 3.0)):
        gate_mask = apply_gate("any-dimension", threshold, condition, read, label, torch.ones(4_000))
        found[name] = (float((~gate_mask)[far].double().mean()), float((~gate_mask)[~wrong].double().mean()))
    assert found["robust"][0] > 0.95
    assert found["robust"][1] < 0.02
    assert found["robust"][0] > found["plain"][0] + (0.2 if share == 0.3 else 0.0)
