"""The contribution of one forward pass on one rank to a step's objective.

The objective is a statistic of the global batch:

    sum_j alpha_j (1 - CCC_j) + lambda * mean_gate distance + prediction_weight * prediction term

mean_gate is over the rows that pass the gate; where it gives shares, the mean weighted by them. The prediction term is
mean_gate of the squared difference over all targets; with a gate per dimension the mean over targets of such means over
the rows that pass there; or else sum_j alpha_j (1 - CCC_j) of student and teacher over what passes.

First every micro-batch of every rank gives its ``batch_sums``, which are packed, added over micro-batches and ranks,
and unpacked. Then each micro-batch backpropagates its ``surrogate``: the sum of the surrogates' gradients over all
micro-batches and ranks is exactly the gradient of the objective. Whoever averages gradients over ranks or micro-batches
has to undo that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ccts_dist.batches import TeacherBatch
from ccts_dist.config.schema import DEFAULT_THRESHOLD
from ccts_dist.losses.ccc import SUM_ROWS, concordance_gradient, concordance_sums, counted
from ccts_dist.losses.constants import constant
from ccts_dist.losses.distill import (
    Distance,
    embedding_distance,
    prediction_loss,
    squared_differences,
    standardize,
)
from ccts_dist.losses.gate import GateMask, apply_gate, prediction_weights, row_weights
from ccts_dist.losses.teacher_ccc import AGREEMENT_ROWS, agreement_loss, agreement_sums, agreement_surrogate
from ccts_dist.records import Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTerms:
    """The distillation terms of the objective, with all that they need."""

    condition: Condition
    embedding_weight: float = 30.0
    """Lambda of the paper."""

    embedding_loss: Distance = "l2"
    prediction_weight: float = 0.0
    prediction_loss: Literal["mse", "ccc"] = "mse"
    """"ccc" takes the target weights of the CCC loss."""

    gate: str = "any-dimension"
    """One of ``gate.GATES``."""

    threshold: float = DEFAULT_THRESHOLD
    """Largest residual that passes, in standard deviations."""

    embedding_mean: Float64[Tensor, " hidden"] | None = None
    """Given together with ``embedding_std``: embeddings are compared in these units; None compares them raw."""

    embedding_std: Float64[Tensor, " hidden"] | None = None

    @property
    def is_per_dimension(self) -> bool:
        """True if the gate decides about each dimension by itself, and the prediction term has a divisor for each."""
        return self.gate == "per-dimension"

    def gate_mask(
        self, teacher: TeacherBatch, label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"]
    ) -> GateMask:
        """Gate mask of a batch; needs no student."""
        return apply_gate(
            self.gate, self.threshold, self.condition, teacher.prediction, label, weight, teacher.admitted
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSums:
    """The sums over a global batch that any part of it needs before it can be backpropagated."""

    concordance: Float64[Tensor, "6 dim"]
    """Sums as ``ccc.concordance_sums`` gives them."""

    num_distilled: Float64[Tensor, ""]
    """Divisor of the embedding term: rows that are distilled in it, or their shares added up."""

    num_rows: Float64[Tensor, ""]
    """Rows that count."""

    num_distilled_per_dim: Float64[Tensor, " dim"] | None = None
    """With a gate per dimension: what the prediction term divides by in each, rows that are distilled there."""

    agreement: Float64[Tensor, "7 dim"] | None = None
    """With ``prediction_loss`` "ccc": as ``teacher_ccc.agreement_sums`` gives them."""


def batch_sums(
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    gate_mask: GateMask | None,
    *,
    teacher: TeacherBatch | None = None,
    distill: DistillTerms | None = None,
) -> BatchSums:
    """The sums of one micro-batch; ``gate_mask`` is None without a teacher. Carries no gradient.

    Args:
        prediction: the student's.
        label: NaN where nobody rated.
        weight: 1 for rows that count, 0 for others.
        gate_mask: ``distill.gate_mask`` of these rows.
        teacher: the teacher's outputs for the same rows; for ``prediction_loss`` "ccc".
        distill: the terms' settings; likewise.
    """
    rows = (weight > 0).double().sum()
    agreement = None
    if gate_mask is not None and distill is not None and distill.prediction_loss == "ccc":
        assert teacher is not None, "a CCC with the teacher needs its predictions"
        share = prediction_weights(gate_mask, weight, prediction.shape[1])
        agreement = agreement_sums(prediction, teacher.prediction, share)
    return BatchSums(
        concordance=concordance_sums(prediction, label, weight),
        num_distilled=torch.zeros_like(rows) if gate_mask is None else row_weights(gate_mask, weight).sum(),
        num_rows=rows,
        num_distilled_per_dim=distilled_per_dimension(gate_mask, weight),
        agreement=agreement,
    )


def distilled_per_dimension(
    gate_mask: GateMask | None, weight: Float[Tensor, " batch"]
) -> Float64[Tensor, " dim"] | None:
    """Rows that a gate per dimension keeps in each; None with another gate."""
    return (
        prediction_weights(gate_mask, weight, gate_mask.shape[1]).sum(0)
        if gate_mask is not None and gate_mask.ndim == 2
        else None
    )


def pack_sums(sums: BatchSums) -> Float64[Tensor, " packed"]:
    """One flat tensor, so that one all-reduce does; packed sums may be added."""
    pieces = [sums.concordance.flatten(), sums.num_distilled[None], sums.num_rows[None]]
    if sums.num_distilled_per_dim is not None:
        pieces.append(sums.num_distilled_per_dim)
    if sums.agreement is not None:
        pieces.append(sums.agreement.flatten())
    return torch.cat(pieces)


def unpack_sums(packed: Float64[Tensor, " packed"], distill: DistillTerms | None = None) -> BatchSums:
    """The inverse of ``pack_sums``; ``distill`` is that of the batches, or None without a teacher."""
    first, per_dim = len(SUM_ROWS), int(distill is not None and distill.is_per_dimension)
    in_agreement = len(AGREEMENT_ROWS) if distill is not None and distill.prediction_loss == "ccc" else 0
    dim = (len(packed) - 2) // (first + per_dim + in_agreement)
    concordance, counts, num_distilled_per_dim, agreement = packed.split(
        [first * dim, 2, per_dim * dim, in_agreement * dim]
    )
    return BatchSums(
        concordance=concordance.reshape(first, dim),
        num_distilled=counts[0],
        num_rows=counts[1],
        num_distilled_per_dim=num_distilled_per_dim if per_dim else None,
        agreement=agreement.reshape(in_agreement, dim) if in_agreement else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillParts:
    """The distillation terms, unweighted; or a part's share in them: shares add up to the terms."""

    embedding: Float64[Tensor, ""]
    prediction: Float64[Tensor, ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceSums:
    """Distances between student and teacher added up, each times its row's share; may be added themselves."""

    embedding: Float64[Tensor, ""]
    prediction: Float64[Tensor, " columns"]
    """One column for whole rows; one per dimension with a gate per dimension; none where the term is no such sum."""

    def over(
        self, num_distilled: Float64[Tensor, ""], num_distilled_per_dim: Float64[Tensor, " dim"] | None = None
    ) -> DistillParts:
        """The share in the distillation terms of rows with these distances.

        Args:
            num_distilled: ``BatchSums.num_distilled`` of the global batch; where it is 0 there is nothing to divide.
            num_distilled_per_dim: ``BatchSums.num_distilled_per_dim`` of the global batch.
        """
        prediction = torch.zeros_like(self.embedding)
        if len(self.prediction):
            prediction = (
                self.prediction / _divisor(num_distilled if num_distilled_per_dim is None else num_distilled_per_dim)
            ).mean()
        return DistillParts(embedding=self.embedding / _divisor(num_distilled), prediction=prediction)


def _divisor(count: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    return torch.where(count > 0, count, 1.0)


def distill_sums(
    prediction: Float[Tensor, "batch dim"],
    embedding: Float[Tensor, "batch hidden"],
    weight: Float[Tensor, " batch"],
    teacher: TeacherBatch,
    gate_mask: GateMask,
    distill: DistillTerms,
) -> DistanceSums:
    """The distances of one micro-batch's distilled rows added up. Carries gradient; sums may be added over
    micro-batches and ranks.

    Args:
        prediction: the student's, of this micro-batch.
        embedding: the student's, of this micro-batch.
        weight: 1 for rows that count, 0 for others.
        teacher: the teacher's outputs for the same rows.
        gate_mask: ``distill.gate_mask`` of these rows.
        distill: the terms' settings.
    """
    share = row_weights(gate_mask, weight)
    student, target = _zero_unless(share > 0, embedding), _zero_unless(share > 0, teacher.embedding)
    if distill.embedding_mean is not None and distill.embedding_std is not None:
        student = standardize(student, distill.embedding_mean, distill.embedding_std)
        target = standardize(target, distill.embedding_mean, distill.embedding_std)
    own, other = _zero_unless(share > 0, prediction), _zero_unless(share > 0, teacher.prediction)
    if distill.prediction_loss == "ccc":
        columns = share[:0]  # a statistic of the batch, and no sum over its rows
    elif gate_mask.ndim == 2:
        columns = squared_differences(own, other, gate_mask).double().sum(0)
    else:
        columns = (prediction_loss(own, other).double() * share).sum()[None]
    return DistanceSums(
        embedding=(embedding_distance(student, target, distance=distill.embedding_loss).double() * share).sum(),
        prediction=columns,
    )


def _zero_unless(
    chosen: Bool[Tensor, " batch"], rows: Float[Tensor, "batch columns"]
) -> Float[Tensor, "batch columns"]:
    """The chosen rows, and zeros in place of the others, whatever stands there.

    To leave them out by index, the host would have to know how many they are, and wait for the device.
    """
    return torch.where(chosen[:, None], rows, 0.0)


def surrogate(
    prediction: Float[Tensor, "batch dim"],
    embedding: Float[Tensor, "batch hidden"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    sums: BatchSums,
    target_weights: Sequence[float] | Float64[Tensor, " dim"],
    *,
    teacher: TeacherBatch | None = None,
    gate_mask: GateMask | None = None,
    distill: DistillTerms | None = None,
) -> tuple[Float[Tensor, ""], DistillParts]:
    """A scalar to backpropagate for one micro-batch; its value is not the loss, but the gradients add up to the loss's.

    Rows that do not count are replaced by zeros, so that what stands in them reaches neither value nor gradient.
    The graph has the same shape on every rank: one without a row that counts or is distilled replaces all of the same
    tensors, and its gradients are zeros.

    Args:
        prediction: the student's, of this micro-batch.
        embedding: the student's, of this micro-batch.
        label: NaN where nobody rated; a row without any label counts in the distillation only.
        weight: 1 for rows that count, 0 for others.
        sums: of the global batch, this micro-batch included.
        target_weights: alpha of each dimension; or a float64 tensor of them.
        teacher: the teacher's outputs for the same rows; with ``gate_mask`` and ``distill`` or not at all.
        gate_mask: ``distill.gate_mask`` of these rows.
        distill: the distillation terms' settings; None for the CCC alone.

    Returns:
        The scalar, and this micro-batch's shares in the distillation terms; a term that is a CCC has none, see
        ``completed``.
    """
    alpha = constant(target_weights, prediction.device)
    gradient = -alpha * concordance_gradient(sums.concordance, prediction, label, weight)
    total = (gradient * torch.where(counted(label, weight), prediction, 0.0).double()).sum()
    zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
    parts = DistillParts(embedding=zero, prediction=zero)
    if distill is not None:
        assert teacher is not None, "distillation needs the teacher's outputs in the batch"
        assert gate_mask is not None, "distillation needs the gate's mask"
        distances = distill_sums(prediction, embedding, weight, teacher, gate_mask, distill)
        share = distances.over(sums.num_distilled, sums.num_distilled_per_dim)
        total = total + distill.embedding_weight * share.embedding + distill.prediction_weight * share.prediction
        if sums.agreement is not None:
            own = prediction_weights(gate_mask, weight, prediction.shape[1])
            value = agreement_surrogate(sums.agreement, prediction, teacher.prediction, own, target_weights)
            total = total + distill.prediction_weight * value
        parts = DistillParts(embedding=share.embedding.detach(), prediction=share.prediction.detach())
    return total.to(prediction.dtype), parts


def completed(parts: DistillParts, sums: BatchSums, target_weights: Sequence[float]) -> DistillParts:
    """The distillation terms, from the parts added over all micro-batches and ranks, and the global sums."""
    if sums.agreement is None:
        return parts
    return replace(parts, prediction=agreement_loss(sums.agreement, target_weights))


def with_distillation(
    ccc_loss: Float64[Tensor, ""], parts: DistillParts, distill: DistillTerms | None
) -> Float64[Tensor, ""]:
    """A step's objective, from its CCC loss and its distillation terms."""
    if distill is None:
        return ccc_loss
    return ccc_loss + distill.embedding_weight * parts.embedding + distill.prediction_weight * parts.prediction
