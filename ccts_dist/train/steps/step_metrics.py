"""Objective of a step, and its figures over all ranks."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ccts_dist.losses.category import PLAIN, CategoryTerm
from ccts_dist.losses.total import DistillParts, DistillTerms, with_distillation
from ccts_dist.train.zero.engine import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The objective, by plain numbers."""

    target_weights: tuple[float, ...]
    category_weight: float = 0.0
    """Weight of the cross-entropy; plays no part where batches have no categories."""

    category: CategoryTerm = PLAIN
    distill: DistillTerms | None = None
    scope: Literal["global", "micro-batch"] = "global"
    """Whose CCC: see ``losses.total`` and ``losses.micro_batch``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A step's figures, of the global batch; the same on every rank."""

    loss: float
    ccc_loss: float
    ccc: tuple[float, ...]
    """CCC of the global batch; with scope "micro-batch" the mean over the micro-batches."""

    category_loss: float
    """Mean cross-entropy in nats; 0 where no row has a category."""

    embedding_loss: float
    prediction_loss: float
    num_rows: int
    num_distilled: float
    """Utterances that are distilled: their shares added up; with a gate per dimension the mean of
    ``num_distilled_per_dim``."""

    num_distilled_per_dim: tuple[float, ...]
    """With a gate per dimension: utterances that are distilled in each; else empty."""

    num_damaged: int
    """Utterances that were skipped because they are damaged."""

    key_checksum: int
    """Sum of the CRC-32 of the keys of the rows that count: equal for equal global batches, however they are cut."""

    update: Update | None
    """None when the loss was not finite and the step was skipped."""

    aside: tuple[float, ...]
    """``train_step``'s, added up over ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """A step's figures over all ranks, as tensors of the host."""

    ccc_loss: Tensor
    ccc: Tensor
    category_loss: Tensor
    distilled: DistillParts
    num_rows: Tensor
    num_distilled: Tensor
    num_distilled_per_dim: Tensor | None
    counts: Tensor
    """Checksum of the keys that count, and number of damaged utterances."""

    aside: Tensor

    def loss(self, objective: Objective) -> float:
        """The whole objective."""
        labelled = self.ccc_loss + objective.category_weight * self.category_loss
        return float(with_distillation(labelled, self.distilled, objective.distill))

    def result(self, objective: Objective, update: Update | None) -> StepResult:
        """In plain numbers."""
        return StepResult(
            loss=self.loss(objective),
            ccc_loss=float(self.ccc_loss),
            ccc=tuple(self.ccc.tolist()),
            category_loss=float(self.category_loss),
            embedding_loss=float(self.distilled.embedding),
            prediction_loss=float(self.distilled.prediction),
            num_rows=int(self.num_rows),
            num_distilled=float(
                self.num_distilled if self.num_distilled_per_dim is None else self.num_distilled_per_dim.mean()
            ),
            num_distilled_per_dim=()
            if self.num_distilled_per_dim is None
            else tuple(self.num_distilled_per_dim.tolist()),
            num_damaged=int(self.counts[1]),
            key_checksum=int(self.counts[0]),
            update=update,
            aside=tuple(self.aside.tolist()),
        )
