"""Ridge regression from sums, against hand-worked numbers and least squares over the rows themselves."""

import numpy as np
import pytest
import torch

from ccts_dist.probe.ridge import STRENGTHS, fit_ridge, moments_of, predict


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def rows(count=40, features=6, targets=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Features of unlike size and far from zero, as frames are.
    x = torch.randn(count, features, generator=generator, dtype=torch.float64) * torch.tensor([1, 9, 0.1, 1, 1, 30.0])
    x = x + torch.tensor([0, 50, -3, 1, 0, 5.0])
    y = torch.rand(count, targets, generator=generator, dtype=torch.float64) + 0.01 * x[:, :targets]
    return x, y


def least_squares(x, y, strength):
    """(weights, intercept) over the rows, in numpy, the penalty as rows of its own: |Z w - y|^2 + n strength |w|^2."""
    x, y = x.numpy(), y.numpy()
    mean, std = x.mean(0), x.std(0)
    z, count = (x - mean) / std, len(x)
    above = np.concatenate([z, np.sqrt(count * strength) * np.eye(z.shape[1])])
    below = np.concatenate([y - y.mean(0), np.zeros((z.shape[1], y.shape[1]))])
    standardised = np.linalg.lstsq(above, below, rcond=None)[0]
    weights = standardised / std[:, None]
    return weights, y.mean(0) - mean @ weights


def test_moments_by_hand():
    moments = moments_of(torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [5.0]]))
    assert moments.tolist() == [[2, 5, 6], [5, 13, 17], [6, 17, 26]]


def test_fit_by_hand():
    # z = -1, 1; y - mean = -0.5, 0.5; w = 0.5 / (1 + strength) of z, and z = x - 3.
    fits = fit_ridge(moments_of(double([2.0], [4.0]), double([0.0], [1.0])), 1, strengths=(1.0, 4.0))
    assert fits.weights.flatten().tolist() == pytest.approx([0.25, 0.1])
    assert fits.intercept.flatten().tolist() == pytest.approx([0.5 - 0.75, 0.5 - 0.3])
    assert predict(double([2.0], [4.0]), fits)[:, 0, 0].tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 100.0])
def test_fit_is_that_of_least_squares_over_the_rows(strength):
    x, y = rows()
    fits = fit_ridge(moments_of(x, y), 2, strengths=(0.5, strength))
    weights, intercept = least_squares(x, y, strength)
    np.testing.assert_allclose(fits.weights[1].numpy(), weights, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(fits.intercept[1].numpy(), intercept, rtol=1e-8)


def test_weakest_penalty_is_close_to_none_at_all():
    x, y = rows()
    fits = fit_ridge(moments_of(x, y), 2)
    best = torch.linalg.lstsq(torch.cat([torch.ones(len(x), 1), x], dim=1), y).solution
    assert STRENGTHS[0] == pytest.approx(1e-6)
    torch.testing.assert_close(
        predict(x, fits)[:, 0], torch.cat([torch.ones(len(x), 1), x], dim=1) @ best, rtol=0, atol=1e-5
    )


def test_more_features_than_rows():
    x, y = (
        torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        double([0, 1, 0, 1, 1]).T,
    )
    fits = fit_ridge(moments_of(x, y), 1, strengths=(0.1,))
    weights, _ = least_squares(x, y, 0.1)
    np.testing.assert_allclose(fits.weights[0].numpy(), weights, rtol=1e-8)


def test_moments_add_over_parts():
    x, y = rows()
    whole = fit_ridge(moments_of(x, y), 2)
    parts = fit_ridge(moments_of(x[:1], y[:1]) + moments_of(x[1:25], y[1:25]) + moments_of(x[25:], y[25:]), 2)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 7.3, 1e4])
def test_feature_that_does_not_vary_gets_no_weight(constant):
    x, y = rows()
    with_constant = torch.cat([x, torch.full((len(x), 1), constant)], dim=1)
    fits, without = fit_ridge(moments_of(with_constant, y), 2), fit_ridge(moments_of(x, y), 2)
    assert fits.weights[:, -1].abs().max() == 0
    torch.testing.assert_close(fits.weights[:, :-1], without.weights)
    torch.testing.assert_close(fits.intercept, without.intercept)
