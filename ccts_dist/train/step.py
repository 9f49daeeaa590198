"""One optimizer step: the exact loss of the global batch, whatever ranks and passes it is spread over."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ccts_dist.distributed import Ranks, derive_seed, seed_everything, sum_over_ranks
from ccts_dist.losses.ccc import ccc_loss_from_sums, concordance_from_sums
from ccts_dist.losses.total import (
    BatchSums,
    DistillParts,
    DistillTerms,
    batch_sums,
    pack_sums,
    surrogate,
    total_loss,
    unpack_sums,
)
from ccts_dist.records import Batch, StepBatches
from ccts_dist.train.engine import Update


@runtime_checkable
class StepEngine(Protocol):
    """What a step needs of an engine."""

    ranks: Ranks
    device: torch.device

    def forward(self, batch: Batch) -> Any:
        """Embedding and prediction."""
        ...

    def backward(self, surrogate: Tensor) -> None:
        """Add to the global gradient."""
        ...

    def step(self) -> Update:
        """Count a pass; move the weights after the last."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised, by plain numbers."""

    target_weights: tuple[float, ...]
    distill: DistillTerms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A step's figures, of the global batch; the same on every rank."""

    loss: float
    ccc_loss: float
    ccc: tuple[float, ...]
    embedding_loss: float
    prediction_loss: float
    num_rows: int
    num_kept: int
    num_damaged: int
    """Utterances that were left out because they are damaged."""

    key_checksum: int
    """Sum of the CRC-32 of the keys of the rows that count: equal for equal global batches, however they are cut."""

    update: Update | None
    """None when the loss was not finite and the step was left out."""


def train_step(engine: StepEngine, batches: StepBatches, objective: Objective, *, seed: int) -> StepResult:
    """Move the weights by the gradient of the loss of the global batch of which ``batches`` are this rank's part.

    With several passes, a first round without gradient collects the predictions whose sums the loss needs. Each
    forward draws its random state from (seed, epoch, step, rank, pass), so that the second round repeats the first,
    and so that resuming needs no generator's state.

    A loss that is not finite is seen by all ranks alike, since all see the same sums: then none backpropagates.
    """
    passes = [batch.to(engine.device) for batch in batches.passes]
    kept = [_kept(batch, objective.distill) for batch in passes]
    place = (seed, batches.epoch, batches.step, engine.ranks.rank)
    two_rounds = len(passes) > 1
    outputs: list[Any] = []
    packed = None
    for number, batch in enumerate(passes):
        with torch.set_grad_enabled(not two_rounds):
            output = _forward(engine, batch, place, number)
        sums = pack_sums(batch_sums(output.prediction, batch.labels, batch.weight, kept[number]))
        sums = torch.cat([sums, _counts(batch).to(sums.device)])
        packed = sums if packed is None else packed + sums
        outputs.append(None if two_rounds else output)
    assert packed is not None, "a step has at least one pass"
    reduced = sum_over_ranks(packed)
    sums, counts = unpack_sums(reduced[:-2]), reduced[-2:]
    if not math.isfinite(float(ccc_loss_from_sums(sums.concordance, objective.target_weights))):
        return _result(sums, counts, objective, None, None)
    parts: list[DistillParts] = []
    update = None
    for number, batch in enumerate(passes):
        output = outputs[number] if outputs[number] is not None else _forward(engine, batch, place, number)
        outputs[number] = None
        value, part = surrogate(
            output.prediction,
            output.embedding,
            batch.labels,
            batch.weight,
            sums,
            objective.target_weights,
            teacher=batch.teacher,
            kept=kept[number],
            distill=objective.distill,
        )
        parts.append(part)
        engine.backward(value)
        update = engine.step()
    return _result(sums, counts, objective, parts, update)


def _counts(batch: Batch) -> Tensor:
    """Checksum of the keys that count, and number of damaged utterances."""
    # Exact in float64 below 2^53, that is for two million keys.
    keys = (zlib.crc32(key.encode()) for key, w in zip(batch.keys, batch.weight.tolist(), strict=True) if w > 0)
    return torch.tensor([float(sum(keys)), float(len(batch.damaged))], dtype=torch.float64)


def _kept(batch: Batch, distill: DistillTerms | None) -> Tensor | None:
    if distill is None:
        return None
    assert batch.teacher is not None, "the loader gives the teacher's outputs whenever a run distils"
    return distill.kept(batch.teacher, batch.labels, batch.weight)


def _forward(engine: StepEngine, batch: Batch, place: Sequence[int], number: int) -> Any:
    seed_everything(derive_seed("forward", *place, number))
    return engine.forward(batch)


def _result(
    sums: BatchSums,
    counts: Tensor,
    objective: Objective,
    parts: Sequence[DistillParts] | None,
    update: Update | None,
) -> StepResult:
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    whole = DistillParts(embedding=nan, prediction=nan)
    if parts is not None:
        local = torch.stack([torch.stack([part.embedding, part.prediction]) for part in parts]).sum(0)
        if objective.distill is not None:
            local = sum_over_ranks(local)
        whole = DistillParts(embedding=local[0], prediction=local[1])
    return StepResult(
        loss=float(total_loss(sums, objective.target_weights, whole, objective.distill)),
        ccc_loss=float(ccc_loss_from_sums(sums.concordance, objective.target_weights)),
        ccc=tuple(concordance_from_sums(sums.concordance).tolist()),
        embedding_loss=float(whole.embedding),
        prediction_loss=float(whole.prediction),
        num_rows=int(sums.num_rows),
        num_kept=int(sums.num_kept),
        num_damaged=int(counts[1]),
        key_checksum=int(counts[0]),
        update=update,
    )
