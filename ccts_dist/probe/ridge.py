"""Ridge regression out of sums that may be added over batches and ranks: pure functions, float64 throughout.

With standardised features z and labels y, the fit is the w, b that make mean((y - z w - b)^2) + strength |w|^2
smallest (Hoerl & Kennard 1970). All it needs of the rows are the second moments of (1, features, labels).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

STRENGTHS = tuple(10 ** (half / 2) for half in range(-12, 5))
"""Strengths of the penalty, 1e-6 to 100 in half decades. Standardised features have variance 1: at 1, a feature
that is alone gets half of its weight."""

_CONSTANT = 1e-12
"""Smallest variance relative to the mean square; below is no more than the rounding of float32 frames."""


class RidgeFits(NamedTuple):
    """One fit for each strength, over the features as they are: prediction = features @ weights + intercept."""

    weights: Float64[Tensor, "strengths features dim"]
    intercept: Float64[Tensor, "strengths dim"]


def moments_of(
    features: Float[Tensor, "batch features"], labels: Float[Tensor, "batch dim"]
) -> Float64[Tensor, "moments moments"]:
    """Sums over the rows of the products of (1, features, labels) with each other: 1 + features + dim of them.

    They add over parts of a split. No label may be missing: a target with other labelled rows needs its own moments.
    """
    ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    columns = torch.cat([ones, features.detach().double(), labels.double()], dim=1)
    return columns.T @ columns


def fit_ridge(
    moments: Float64[Tensor, "moments moments"], num_targets: int, strengths: tuple[float, ...] = STRENGTHS
) -> RidgeFits:
    """The fits of each target, for each strength, from one decomposition of the features' correlations.

    A feature that does not vary gets no weight.

    Args:
        moments: of at least one row, as ``moments_of`` gives them.
        num_targets: how many of the last columns are labels.
        strengths: each above 0.
    """
    count, sums = moments[0, 0], moments[0]
    centred = moments / count - torch.outer(sums, sums) / count**2
    inner, outer = slice(1, len(moments) - num_targets), slice(len(moments) - num_targets, None)
    variance, mean_square = centred.diagonal()[inner], moments.diagonal()[inner] / count
    varies = variance > _CONSTANT * mean_square
    scale = torch.where(varies, variance, torch.ones_like(variance)).rsqrt() * varies
    correlations = centred[inner, inner] * scale[:, None] * scale
    # eigh reads one triangle; what the other one holds differs in rounding.
    values, vectors = torch.linalg.eigh(correlations)
    along = vectors.T @ (centred[inner, outer] * scale[:, None])
    penalties = torch.tensor(strengths, dtype=torch.float64, device=moments.device)[:, None, None]
    standardised = vectors @ (along / (values.clamp(min=0)[:, None] + penalties))
    weights = standardised * scale[:, None]
    return RidgeFits(weights, (sums[outer] - sums[inner] @ weights) / count)


def predict(features: Float[Tensor, "batch features"], fits: RidgeFits) -> Float64[Tensor, "batch strengths dim"]:
    """Prediction of each fit for each row."""
    predicted = torch.einsum("bf,sfd->bsd", features.detach().double(), fits.weights)
    return predicted + fits.intercept
