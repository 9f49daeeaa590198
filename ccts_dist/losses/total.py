"""What one forward pass on one rank contributes to a step's objective.

The objective is a statistic of the global batch:

    sum_j alpha_j (1 - CCC_j) + lambda * mean_kept distance + prediction_weight * mean_kept prediction distance

First every pass of every rank gives its ``batch_sums``, which are packed, added over passes and ranks, and unpacked.
Then each pass backpropagates its ``surrogate``: the sum of the surrogates' gradients over all passes and ranks is
exactly the gradient of the objective. Whoever averages gradients over ranks or passes has to undo that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ccts_dist.losses.ccc import ccc_loss_from_sums, concordance_gradient, concordance_sums, counted
from ccts_dist.losses.condition import kept_rows
from ccts_dist.losses.distill import embedding_distance, prediction_distance, standardise
from ccts_dist.records import Condition, TeacherBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTerms:
    """What a student learns from its teacher, with all that the terms need."""

    condition: Condition
    embedding_weight: float = 30.0
    """Lambda of the paper."""

    distance: Literal["squared", "norm"] = "squared"
    prediction_weight: float = 0.0
    gate: str = "any-dimension"
    threshold: float = 2.0
    """Widest residual that is kept, in deviations."""

    embedding_mean: Float64[Tensor, " hidden"] | None = None
    """Given together with ``embedding_deviation``: embeddings are compared in these units; None compares them raw."""

    embedding_deviation: Float64[Tensor, " hidden"] | None = None

    def kept(
        self, teacher: TeacherBatch, label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Which rows of a batch are distilled; needs no student."""
        return kept_rows(self.gate, self.threshold, self.condition, teacher.prediction, label, weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSums:
    """What has to be known of a whole global batch before any part of it can be backpropagated."""

    concordance: Float64[Tensor, "6 dim"]
    """As ``ccc.concordance_sums`` gives them."""

    num_kept: Float64[Tensor, ""]
    """Rows that are distilled."""

    num_rows: Float64[Tensor, ""]
    """Rows that count."""


def batch_sums(
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    kept: Bool[Tensor, " batch"] | None,
) -> BatchSums:
    """The sums of one pass; ``kept`` is None without a teacher. Carries no gradient."""
    rows = (weight > 0).double().sum()
    return BatchSums(
        concordance=concordance_sums(prediction, label, weight),
        num_kept=torch.zeros_like(rows) if kept is None else (kept & (weight > 0)).double().sum(),
        num_rows=rows,
    )


def pack_sums(sums: BatchSums) -> Float64[Tensor, " packed"]:
    """One flat tensor, so that one all-reduce does; packed sums may be added."""
    return torch.cat([sums.concordance.flatten(), sums.num_kept[None], sums.num_rows[None]])


def unpack_sums(packed: Float64[Tensor, " packed"]) -> BatchSums:
    """The inverse of ``pack_sums``."""
    return BatchSums(concordance=packed[:-2].reshape(6, -1), num_kept=packed[-2], num_rows=packed[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillParts:
    """Distances between student and teacher, unweighted: added up over kept rows, or their means over all of them."""

    embedding: Float64[Tensor, ""]
    prediction: Float64[Tensor, ""]

    def over(self, num_kept: Float64[Tensor, ""]) -> "DistillParts":
        """The share in the distillation terms of rows with these distances; shares add up to the terms."""
        divisor = num_kept.clamp(min=1)
        return DistillParts(embedding=self.embedding / divisor, prediction=self.prediction / divisor)


def distill_sums(
    prediction: Float[Tensor, "batch dim"],
    embedding: Float[Tensor, "batch hidden"],
    weight: Float[Tensor, " batch"],
    teacher: TeacherBatch,
    kept: Bool[Tensor, " batch"],
    distill: DistillTerms,
) -> DistillParts:
    """The distances of one pass's kept rows added up. Carries gradient; sums may be added over passes and ranks.

    Args:
        prediction: the student's, of this pass.
        embedding: the student's, of this pass.
        weight: 1 for rows that count, 0 for others.
        teacher: the teacher's outputs for the same rows.
        kept: ``distill.kept`` of these rows.
        distill: the terms' settings.
    """
    rows = torch.nonzero(kept & (weight > 0)).squeeze(1)
    student, target = embedding[rows], teacher.embedding[rows]
    if distill.embedding_mean is not None and distill.embedding_deviation is not None:
        student = standardise(student, distill.embedding_mean, distill.embedding_deviation)
        target = standardise(target, distill.embedding_mean, distill.embedding_deviation)
    return DistillParts(
        embedding=embedding_distance(student, target, distance=distill.distance).double().sum(),
        prediction=prediction_distance(prediction[rows], teacher.prediction[rows]).double().sum(),
    )


def surrogate(
    prediction: Float[Tensor, "batch dim"],
    embedding: Float[Tensor, "batch hidden"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    sums: BatchSums,
    target_weights: Sequence[float],
    *,
    teacher: TeacherBatch | None = None,
    kept: Bool[Tensor, " batch"] | None = None,
    distill: DistillTerms | None = None,
) -> tuple[Float[Tensor, ""], DistillParts]:
    """A scalar to backpropagate for one pass; its value is not the loss, but the gradients add up to the loss's.

    Rows that do not count are left out by index, so that what stands in them reaches neither value nor gradient.
    The graph has the same shape on every rank: one without a row that counts or is kept selects nothing from the same
    tensors, and its gradients are zeros.

    Args:
        prediction: the student's, of this pass.
        embedding: the student's, of this pass.
        label: NaN where nobody rated; a row without any label counts in the distillation only.
        weight: 1 for rows that count, 0 for others.
        sums: of the global batch, this pass included.
        target_weights: alpha of each dimension.
        teacher: the teacher's outputs for the same rows; with ``kept`` and ``distill`` or not at all.
        kept: ``distill.kept`` of these rows.
        distill: the distillation terms' settings; None for the CCC alone.
    """
    alpha = torch.tensor(tuple(target_weights), dtype=torch.float64, device=prediction.device)
    gradient = -alpha * concordance_gradient(sums.concordance, prediction, label, weight)
    scored = counted(label, weight)
    total = (gradient[scored] * prediction[scored].double()).sum()
    zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
    parts = DistillParts(embedding=zero, prediction=zero)
    if distill is not None:
        assert teacher is not None, "distillation needs the teacher's outputs in the batch"
        assert kept is not None, "distillation needs to know which rows are kept"
        share = distill_sums(prediction, embedding, weight, teacher, kept, distill).over(sums.num_kept)
        total = total + distill.embedding_weight * share.embedding + distill.prediction_weight * share.prediction
        parts = DistillParts(embedding=share.embedding.detach(), prediction=share.prediction.detach())
    return total.to(prediction.dtype), parts


def total_loss(
    sums: BatchSums, target_weights: Sequence[float], parts: DistillParts, distill: DistillTerms | None
) -> Float64[Tensor, ""]:
    """The step's objective, from the global sums and the parts added over all passes and ranks."""
    return with_distillation(ccc_loss_from_sums(sums.concordance, target_weights), parts, distill)


def with_distillation(
    ccc_loss: Float64[Tensor, ""], parts: DistillParts, distill: DistillTerms | None
) -> Float64[Tensor, ""]:
    """A step's objective, from its CCC loss and the parts added over all passes and ranks."""
    if distill is None:
        return ccc_loss
    return ccc_loss + distill.embedding_weight * parts.embedding + distill.prediction_weight * parts.prediction
