"""The cheaper objective: a CCC for each micro-batch, averaged.

A micro-batch is one forward pass on one rank. Of all micro-batches m of a step, on all ranks, let M_j
be those that have at least two labels of dimension j. The objective is

    sum_j alpha_j / |M_j| * sum_{m in M_j} (1 - CCC_j(m)) + the distillation terms

A dimension for which M_j is empty contributes 0 and no gradient. The distillation terms are those of ``total``: means
over the distilled rows of the global batch, whatever the cut; but not a CCC with the teacher, which needs all
predictions.

Each micro-batch needs its own statistics alone, and how many micro-batches and rows share a mean is known from labels
and cache: so no prediction is needed twice, and a step of several micro-batches is spared the round without gradient.
What is lost: CCC(m) knows nothing of what lies between the micro-batches and is noisy on few rows, so that this is
another loss with every other number of ranks or micro-batches. With one micro-batch in all it is the exact one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ccts_dist.batches import TeacherBatch
from ccts_dist.losses.ccc import concordance_from_sums, concordance_sums, counted
from ccts_dist.losses.constants import constant
from ccts_dist.losses.gate import GateMask, row_weights
from ccts_dist.losses.total import DistillParts, DistillTerms, batch_sums, distilled_per_dimension, surrogate


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroCounts:
    """Divisors of a step's means; needs no prediction, and adds up over micro-batches and ranks."""

    num_scored: Float64[Tensor, " dim"]
    """|M_j|: micro-batches that have at least two labels of the dimension."""

    num_distilled: Float64[Tensor, ""]
    """Rows that are distilled in the embedding term, or their shares added up."""

    num_rows: Float64[Tensor, ""]
    """Rows that count."""

    num_distilled_per_dim: Float64[Tensor, " dim"] | None = None
    """With a gate per dimension: rows that are distilled in each."""


def micro_counts(
    label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"], gate_mask: GateMask | None
) -> MicroCounts:
    """The counts of one micro-batch; ``gate_mask`` is None without a teacher."""
    rows = (weight > 0).double().sum()
    return MicroCounts(
        num_scored=(counted(label, weight).sum(0) >= 2).double(),
        num_distilled=torch.zeros_like(rows) if gate_mask is None else row_weights(gate_mask, weight).sum(),
        num_rows=rows,
        num_distilled_per_dim=distilled_per_dimension(gate_mask, weight),
    )


def pack_counts(counts: MicroCounts) -> Float64[Tensor, " packed"]:
    """One flat tensor; packed counts may be added."""
    pieces = [counts.num_scored, counts.num_distilled[None], counts.num_rows[None]]
    return torch.cat(pieces if counts.num_distilled_per_dim is None else [*pieces, counts.num_distilled_per_dim])


def unpack_counts(packed: Float64[Tensor, " packed"], distill: DistillTerms | None = None) -> MicroCounts:
    """The inverse of ``pack_counts``; ``distill`` is that of the batches, or None without a teacher."""
    is_per_dimension = distill is not None and distill.is_per_dimension
    dim = (len(packed) - 2) // (2 if is_per_dimension else 1)
    return MicroCounts(
        num_scored=packed[:dim],
        num_distilled=packed[dim],
        num_rows=packed[dim + 1],
        num_distilled_per_dim=packed[dim + 2 :] if is_per_dimension else None,
    )


def micro_concordance(
    prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"]
) -> Float64[Tensor, " dim"]:
    """CCC of each dimension within this micro-batch, without gradient; 0 with fewer than two labels.

    So it adds up over micro-batches to ``num_scored`` times their mean.
    """
    return concordance_from_sums(concordance_sums(prediction, label, weight))


def micro_surrogate(
    prediction: Float[Tensor, "batch dim"],
    embedding: Float[Tensor, "batch hidden"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    counts: MicroCounts,
    target_weights: Sequence[float],
    *,
    teacher: TeacherBatch | None = None,
    gate_mask: GateMask | None = None,
    distill: DistillTerms | None = None,
) -> tuple[Float[Tensor, ""], DistillParts]:
    """A scalar to backpropagate for one micro-batch; the gradients of all of a step add up to the objective's.

    It is ``total.surrogate`` with the micro-batch's own sums, and with alpha_j / |M_j| in place of alpha_j.

    Args:
        prediction: the student's, of this micro-batch.
        embedding: the student's, of this micro-batch.
        label: NaN where nobody rated.
        weight: 1 for rows that count, 0 for others.
        counts: of the whole step, added over micro-batches and ranks.
        target_weights: alpha of each dimension.
        teacher: the teacher's outputs for the same rows; with ``gate_mask`` and ``distill`` or not at all.
        gate_mask: ``distill.gate_mask`` of these rows.
        distill: the distillation terms' settings; None for the CCC alone. Its ``prediction_loss`` is not "ccc".
    """
    assert distill is None or distill.prediction_loss != "ccc", "the run file's reader refuses it"
    own = replace(
        batch_sums(prediction, label, weight, gate_mask),
        num_distilled=counts.num_distilled,
        num_distilled_per_dim=counts.num_distilled_per_dim,
    )
    shares = constant(target_weights, prediction.device) / counts.num_scored.clamp(min=1)
    return surrogate(
        prediction, embedding, label, weight, own, shares, teacher=teacher, gate_mask=gate_mask, distill=distill
    )


def mean_concordance(summed: Float64[Tensor, " dim"], num_scored: Float64[Tensor, " dim"]) -> Float64[Tensor, " dim"]:
    """Mean CCC over the micro-batches that have one, from ``micro_concordance`` added up; 0 where none has."""
    return torch.where(num_scored > 0, summed / num_scored.clamp(min=1), torch.zeros_like(summed))


def micro_ccc_loss(
    summed: Float64[Tensor, " dim"], num_scored: Float64[Tensor, " dim"], target_weights: Sequence[float]
) -> Float64[Tensor, ""]:
    """The CCC part of the objective, from ``micro_concordance`` added up over micro-batches and ranks."""
    alpha = constant(target_weights, summed.device)
    loss = alpha * (1 - mean_concordance(summed, num_scored))
    return torch.where(num_scored > 0, loss, torch.zeros_like(loss)).sum()
