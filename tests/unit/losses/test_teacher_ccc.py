"""CCC of student and teacher: numbers worked by hand, and its gradient against autograd."""

import math

import pytest
import torch

from ccts_dist.losses.ccc import concordance
from ccts_dist.losses.teacher_ccc import agreement_gradient, agreement_loss, agreement_sums, agreement_surrogate

NAN = math.nan

# Worked by hand, the third row counting double: means 9/4 and 7/2, variances 11/16 and 9/4, covariance 9/8, and so
# CCC = 2 * 9/8 / (11/16 + 9/4 + 25/16) = 1/2.
STUDENT = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0], [2.0], [5.0]], dtype=torch.float64)
SHARE = torch.tensor([[0.25], [0.25], [0.5]], dtype=torch.float64)


def test_agreement_of_three_utterances_with_shares_is_the_value_worked_by_hand():
    sums = agreement_sums(STUDENT, TEACHER, SHARE)
    assert sums[:, 0].tolist() == [1, 2.25, 3.5, 5.75, 14.5, 9, 3]
    assert agreement_loss(sums, (0.8,), eps=0.0).item() == pytest.approx(0.8 * 0.5, abs=1e-15)


def test_gradient_for_three_utterances_with_shares_is_the_one_worked_by_hand():
    # 2 share / 4.5 * ((y - 3.5) - 1/2 * (p - 3.5))
    gradient = agreement_gradient(agreement_sums(STUDENT, TEACHER, SHARE), STUDENT, TEACHER, SHARE, eps=0.0)
    assert gradient[:, 0].tolist() == pytest.approx([-1 / 36, -1 / 12, 7 / 18], abs=1e-15)


def test_shares_of_a_row_count_as_if_it_stood_there_so_often():
    rows = torch.tensor([0, 1, 2, 2])
    expected = 1 - concordance(STUDENT[rows], TEACHER[rows]).item()
    assert agreement_loss(agreement_sums(STUDENT, TEACHER, SHARE), (1.0,)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("factor", [1e-150, 1e-3, 7.0])
def test_only_the_relation_of_the_shares_matters(factor: float):
    sums = agreement_sums(STUDENT, TEACHER, factor * SHARE)
    assert agreement_loss(sums, (1.0,)).item() == pytest.approx(0.5, abs=1e-7)
    gradient = agreement_gradient(sums, STUDENT, TEACHER, factor * SHARE)
    assert gradient[:, 0].tolist() == pytest.approx([-1 / 36, -1 / 12, 7 / 18], abs=1e-7)


def test_surrogates_of_parts_have_the_gradient_of_the_whole():
    generator = torch.Generator().manual_seed(1)
    student, teacher, share = (torch.rand(9, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    share[4] = 0
    share[2, 1] = 0
    student.requires_grad_()
    sums = sum(agreement_sums(student[rows], teacher[rows], share[rows]) for rows in (slice(0, 4), slice(4, 9)))
    for rows in (slice(0, 4), slice(4, 9)):
        agreement_surrogate(sums, student[rows], teacher[rows], share[rows], (0.2, 0.5, 0.3)).backward()
    by_parts, student.grad = student.grad, None
    whole = torch.zeros((), dtype=torch.float64)
    for j, alpha in enumerate((0.2, 0.5, 0.3)):
        s = share[:, j] / share[:, j].sum()
        p, y = student[:, j], teacher[:, j]
        mean_p, mean_y = (s * p).sum(), (s * y).sum()
        spread = (s * (p - mean_p) ** 2).sum() + (s * (y - mean_y) ** 2).sum() + (mean_p - mean_y) ** 2 + 1e-8
        whole = whole + alpha * (1 - 2 * (s * (p - mean_p) * (y - mean_y)).sum() / spread)
    whole.backward()
    assert by_parts is not None
    torch.testing.assert_close(by_parts, student.grad, atol=1e-12, rtol=0)
    assert agreement_loss(sums, (0.2, 0.5, 0.3)).item() == pytest.approx(whole.item(), abs=1e-12)


def test_dimension_with_fewer_than_two_kept_rows_contributes_nothing():
    share = torch.tensor([[1.0, 0.7], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    student, teacher = STUDENT.expand(3, 2), TEACHER.expand(3, 2)
    sums = agreement_sums(student, teacher, share)
    assert agreement_loss(sums, (1.0, 1.0)).item() == pytest.approx(1 - 6 / 11, abs=1e-7)
    assert (agreement_gradient(sums, student, teacher, share)[:, 1] == 0).all()


def test_nobody_kept_is_a_loss_of_zero_that_still_reaches_the_student():
    student = STUDENT.clone().requires_grad_()
    share = torch.zeros(3, 1, dtype=torch.float64)
    sums = agreement_sums(student, TEACHER, share)
    assert agreement_loss(sums, (1.0,)).item() == 0
    agreement_surrogate(sums, student, TEACHER, share, (1.0,)).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("value", [math.inf, NAN])
def test_prediction_that_is_not_kept_may_be_anything(value: float):
    share = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    spoilt = STUDENT.clone()
    spoilt[1] = value
    sums = agreement_sums(spoilt, TEACHER, share)
    assert torch.equal(sums, agreement_sums(STUDENT, TEACHER, share))
    assert agreement_gradient(sums, spoilt, TEACHER, share).isfinite().all()


def test_prediction_that_is_not_finite_shows_in_the_loss():
    spoilt = STUDENT.clone()
    spoilt[1] = math.inf
    assert not torch.isfinite(agreement_loss(agreement_sums(spoilt, TEACHER, SHARE), (1.0,)))
