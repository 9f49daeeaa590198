"""A student's concordance with its teacher: the CCC of the two models' predictions over a global batch.

As the labels' CCC in ``ccc``, from sums that add up over micro-batches and ranks, with the gradient in closed form;
here each prediction has a share, as the gate gives it, and the moments are weighted by it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ccts_dist.losses.ccc import SUM_ROWS, ccc_loss_from_sums, concordance_gradient
from ccts_dist.losses.constants import constant

AGREEMENT_ROWS = (*(f"share*{name}" for name in SUM_ROWS), "n")
"""Names of the rows of agreement sums, in order; "n" counts the predictions whose share is above 0."""


def agreement_sums(
    prediction: Float[Tensor, "batch dim"],
    teacher: Float[Tensor, "batch dim"],
    share: Float64[Tensor, "batch dim"],
) -> Float64[Tensor, "7 dim"]:
    """The sums of each dimension (``AGREEMENT_ROWS``) over the predictions whose share is above 0; without gradient.

    Others are dropped by selection, so that whatever stands there, infinite or NaN, reaches no sum.

    Args:
        prediction: the student's.
        teacher: the teacher's predictions for the same rows.
        share: of each prediction, as ``gate.prediction_weights`` gives it.
    """
    chosen = share > 0
    p = torch.where(chosen, prediction.detach().double(), 0.0)
    y = torch.where(chosen, teacher.detach().double(), 0.0)
    terms = (torch.ones_like(p), p, y, p * p, y * y, p * y)
    return torch.stack([*((share * term).sum(0) for term in terms), chosen.double().sum(0)])


def _counted(sums: Float64[Tensor, "7 dim"]) -> Float64[Tensor, "6 dim"]:
    """Concordance sums with the same moments, whose n is the number of predictions: shares that are 1 on average."""
    n = sums[6]
    factor = n / torch.where(sums[0] > 0, sums[0], 1.0)
    return torch.cat([n[None], factor * sums[1:6]])


def agreement_loss(
    sums: Float64[Tensor, "7 dim"], target_weights: Sequence[float], *, eps: float = 1e-8
) -> Float64[Tensor, ""]:
    """sum_j alpha_j (1 - CCC_j of student and teacher); a dimension with fewer than two predictions contributes 0."""
    return ccc_loss_from_sums(_counted(sums), target_weights, eps=eps)


def agreement_gradient(
    sums: Float64[Tensor, "7 dim"],
    prediction: Float[Tensor, "batch dim"],
    teacher: Float[Tensor, "batch dim"],
    share: Float64[Tensor, "batch dim"],
    *,
    eps: float = 1e-8,
) -> Float64[Tensor, "batch dim"]:
    """Derivative of each dimension's CCC for each of the student's predictions in a part of the batch.

    It is ``ccc.concordance_gradient`` with 1 / n replaced by the prediction's part in all shares. 0 where the share is
    0, and in dimensions with fewer than two predictions.
    """
    there = torch.where(share > 0, teacher.detach().double(), torch.nan)
    gradient = concordance_gradient(_counted(sums), prediction, there, torch.ones_like(share[:, 0]), eps=eps)
    # Its 1 / n is undone here.
    return torch.where(share > 0, gradient * share * (sums[6] / torch.where(sums[0] > 0, sums[0], 1.0)), 0.0)


def agreement_surrogate(
    sums: Float64[Tensor, "7 dim"],
    prediction: Float[Tensor, "batch dim"],
    teacher: Float[Tensor, "batch dim"],
    share: Float64[Tensor, "batch dim"],
    target_weights: Sequence[float] | Float64[Tensor, " dim"],
) -> Float64[Tensor, ""]:
    """A scalar whose gradients, over all parts that ``sums`` cover, add up to that of ``agreement_loss``."""
    alpha = constant(target_weights, prediction.device)
    gradient = -alpha * agreement_gradient(sums, prediction, teacher, share)
    # Replaced, not selected: to select, the host would have to know how many they are.
    return (gradient * torch.where(share > 0, prediction, 0.0).double()).sum()
