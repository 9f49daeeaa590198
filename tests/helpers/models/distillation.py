"""The distillation terms written down a second time, by autograd over a whole batch, and every way to set them."""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from ccts_dist.batches import TeacherBatch
from ccts_dist.losses.gate import GATES, ROW_GATES
from ccts_dist.losses.total import DistillTerms

LOSS_GATES = tuple(gate for gate in GATES if gate not in ROW_GATES[1:])
"""Gates that the loss distinguishes: of those whose decisions come with the batch it knows the decisions alone."""


def rows_of(teacher: TeacherBatch, rows: slice) -> TeacherBatch:
    """Some rows of a batch's teacher outputs."""
    admitted = None if teacher.admitted is None else teacher.admitted[rows]
    return TeacherBatch(embedding=teacher.embedding[rows], prediction=teacher.prediction[rows], admitted=admitted)


def every_way(base: DistillTerms) -> dict[str, DistillTerms]:
    """By name: ``base`` with every distance, gate and prediction distance."""
    ways = product(("mse", "l2", "cosine"), LOSS_GATES, ("mse", "ccc"))
    return {
        f"{distance} {gate} {predictions}": replace(
            base, embedding_loss=distance, gate=gate, prediction_loss=predictions
        )
        for distance, gate, predictions in ways
    }


def direct_distillation(
    embedding: Tensor,
    prediction: Tensor,
    teacher: TeacherBatch,
    label: Tensor,
    weight: Tensor,
    distill: DistillTerms,
    target_weights: tuple[float, ...],
) -> Tensor:
    """Both terms, weighted and added, over the rows of weight above 0."""
    counts = weight > 0
    own, other = prediction[counts].double(), teacher.prediction[counts].double()
    admitted = None if teacher.admitted is None else teacher.admitted[counts]
    row, each = _shares(other, label[counts].double(), distill, admitted)
    student, target = embedding[counts].double(), teacher.embedding[counts].double()
    if distill.embedding_loss == "mse":
        distance = (student - target).square().mean(1)
    elif distill.embedding_loss == "l2":
        distance = (student - target).square().sum(1).sqrt()
    else:
        distance = 1 - F.cosine_similarity(student, target)
    term = (row * distance).sum() / row.sum()
    between = torch.zeros((), dtype=torch.float64)
    for j, alpha in enumerate(target_weights):
        chosen = each[:, j] > 0
        p, y, share = own[chosen, j], other[chosen, j], each[chosen, j] / each[chosen, j].sum()
        if distill.prediction_loss == "mse":
            between = between + (share * (p - y).square()).sum() / len(target_weights)
        elif len(p) >= 2:
            mean_p, mean_y = (share * p).sum(), (share * y).sum()
            covariance = (share * (p - mean_p) * (y - mean_y)).sum()
            spread = (share * (p - mean_p).square()).sum() + (share * (y - mean_y).square()).sum()
            between = between + alpha * (1 - 2 * covariance / (spread + (mean_p - mean_y).square() + 1e-8))
    return distill.embedding_weight * term + distill.prediction_weight * between


def _shares(prediction: Tensor, label: Tensor, distill: DistillTerms, admitted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of rows in the embedding term, and of predictions in the other."""
    condition = distill.condition
    w, b, residual_std = (
        torch.tensor(numbers, dtype=torch.float64) for numbers in (condition.w, condition.b, condition.residual_std)
    )
    ratio = torch.nan_to_num(w * prediction + b - label, nan=0.0).abs() / residual_std
    within = (ratio <= distill.threshold).double()
    if distill.gate in ROW_GATES:
        assert admitted is not None
        return admitted.double(), admitted.double()[:, None].expand_as(prediction)
    row = {
        "none": torch.ones(len(label)).double(),
        "any-dimension": within.prod(1),
        "per-dimension": torch.ones(len(label)).double(),
        "soft": torch.exp(-(ratio.max(1).values ** 2) / 2),
    }[distill.gate]
    return row, within if distill.gate == "per-dimension" else row[:, None].expand_as(within)
