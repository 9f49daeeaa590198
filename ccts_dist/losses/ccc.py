"""Concordance (CCC) of a batch from sums that may be added over micro-batches and ranks, with its gradient in closed
form.

The concordance of a global batch is no mean of the concordances of its parts, but everything it needs per dimension
is six sums. They are float64: labels and predictions are on 0..1, so that raw sums of squares lose about 1e-16 of
their own size to cancellation, far below the variance of any batch, while float32 sums err by 1e-6.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ccts_dist.losses.constants import constant

SUM_ROWS = ("n", "prediction", "label", "prediction^2", "label^2", "prediction*label")
"""Names of the six rows of concordance sums, in order."""


def counted(label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"]) -> Bool[Tensor, "batch dim"]:
    """True for a label in a row that counts: weight above 0, label not NaN."""
    return ~torch.isnan(label) & (weight > 0)[:, None]


def concordance_sums(
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
) -> Float64[Tensor, "6 dim"]:
    """The six sums of each dimension (``SUM_ROWS``) over the labelled rows of weight above 0; without gradient.

    Other entries are dropped by selection, so that whatever stands there, infinite or NaN, reaches no sum.
    A prediction that is not finite in an entry that counts makes its dimension's sums not finite.
    """
    mask = counted(label, weight)
    zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
    p = torch.where(mask, prediction.detach().double(), zero)
    y = torch.where(mask, label.double(), zero)
    return torch.stack([mask.double().sum(0), p.sum(0), y.sum(0), (p * p).sum(0), (y * y).sum(0), (p * y).sum(0)])


def _moments(sums: Float64[Tensor, "6 dim"], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean label, covariance, and CCC's denominator; numbers without meaning where n is 0."""
    n = sums[0].clamp(min=1)
    mean_p, mean_y = sums[1] / n, sums[2] / n
    variances = (sums[3] / n - mean_p**2) + (sums[4] / n - mean_y**2)
    covariance = sums[5] / n - mean_p * mean_y
    return mean_y, covariance, variances.clamp(min=0) + (mean_p - mean_y) ** 2 + eps


def concordance_from_sums(sums: Float64[Tensor, "6 dim"], *, eps: float = 1e-8) -> Float64[Tensor, " dim"]:
    """CCC of each dimension given its sums; 0 for a dimension with fewer than two labels.

    Lin (1989): 2 cov / (var_prediction + var_label + (mean_prediction - mean_label)^2), population moments.

    Args:
        sums: over the whole batch, whatever parts it came in.
        eps: added to the denominator; a constant prediction of a constant label then has 0.
    """
    _, covariance, denominator = _moments(sums, eps)
    return torch.where(sums[0] >= 2, 2 * covariance / denominator, torch.zeros_like(covariance))


def concordance_gradient(
    sums: Float64[Tensor, "6 dim"],
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    *,
    eps: float = 1e-8,
) -> Float64[Tensor, "batch dim"]:
    """Derivative of each dimension's CCC for each prediction of a part of the batch that ``sums`` cover.

    With D the denominator of CCC: d CCC / d p_i = 2 / (n D) * ((y_i - mean_y) - CCC * (p_i - mean_y)).
    0 where there is no label, where the weight is 0, and in dimensions with fewer than two labels.
    """
    mean_y, covariance, denominator = _moments(sums, eps)
    ccc = 2 * covariance / denominator
    slope = (label.double() - mean_y) - ccc * (prediction.detach().double() - mean_y)
    gradient = slope * 2 / (sums[0].clamp(min=1) * denominator)
    return torch.where(counted(label, weight) & (sums[0] >= 2), gradient, torch.zeros_like(gradient))


def ccc_loss_from_sums(
    sums: Float64[Tensor, "6 dim"], target_weights: Sequence[float], *, eps: float = 1e-8
) -> Float64[Tensor, ""]:
    """sum_j alpha_j (1 - CCC_j); a dimension with fewer than two labels contributes 0."""
    alpha = constant(target_weights, sums.device)
    loss = alpha * (1 - concordance_from_sums(sums, eps=eps))
    return torch.where(sums[0] >= 2, loss, torch.zeros_like(loss)).sum()


def concordance(
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    *,
    eps: float = 1e-8,
) -> Float[Tensor, " dim"]:
    """CCC of each dimension over the rows of this batch, differentiable; NaN labels are omitted per dimension.

    These are the statistics of *these* rows. The concordance of a batch that is spread over ranks or micro-batches
    comes from ``concordance_sums`` added up, never from a mean of such values. Computed in float64 whatever comes in,
    and returned so: the variance of a small bfloat16 batch is mostly rounding.

    Args:
        prediction: the model's, on the labels' scale.
        label: the raters' mean; NaN where nobody rated.
        eps: added to the denominator; a constant prediction of a constant label then has 0.

    Returns:
        One value per dimension; 0 for a dimension with fewer than two labels.
    """
    mask = ~torch.isnan(label)
    zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
    n = mask.double().sum(0)
    divisor = n.clamp(min=1)
    p, y = torch.where(mask, prediction.double(), zero), torch.where(mask, label.double(), zero)
    mean_p, mean_y = p.sum(0) / divisor, y.sum(0) / divisor
    p, y = torch.where(mask, p - mean_p, zero), torch.where(mask, y - mean_y, zero)
    denominator = ((p * p).sum(0) + (y * y).sum(0)) / divisor + (mean_p - mean_y) ** 2 + eps
    value = 2 * (p * y).sum(0) / divisor / denominator
    return torch.where(n >= 2, value, torch.zeros_like(value))
