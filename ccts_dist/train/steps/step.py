"""One optimizer step: the exact loss of the global batch, whatever ranks and micro-batches it is spread over; or, where
the run file asks for it, a CCC for each micro-batch."""

import math
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ccts_dist.batches import Batch, StepBatches, padded_samples
from ccts_dist.device.transfer import fetched, queued
from ccts_dist.distributed import Ranks, sum_over_ranks
from ccts_dist.losses.category import (
    CategoryTarget,
    category_shares,
    cross_entropy_sums,
    mean_cross_entropy,
    over,
)
from ccts_dist.losses.ccc import ccc_loss_from_sums, concordance_from_sums
from ccts_dist.losses.micro_batch import (
    mean_concordance,
    micro_ccc_loss,
    micro_concordance,
    micro_counts,
    micro_surrogate,
    pack_counts,
    unpack_counts,
)
from ccts_dist.losses.total import (
    DistanceSums,
    DistillParts,
    DistillTerms,
    batch_sums,
    completed,
    distill_sums,
    pack_sums,
    surrogate,
    unpack_sums,
)
from ccts_dist.process.seeds import derive_seed, seed_everything
from ccts_dist.train.speed.step_profile import SUMS, timed
from ccts_dist.train.steps.step_metrics import Objective, StepResult, StepTotals
from ccts_dist.train.steps.two_rounds import TwoRounds
from ccts_dist.train.zero.engine import Update


@runtime_checkable
class StepEngine(Protocol):
    """The engine that a step needs."""

    ranks: Ranks
    device: torch.device

    def forward(self, batch: Batch) -> Any:
        """Embedding and prediction, and scores of categories if the batch has any."""

    def start_step(self, num_micro_batches: int) -> None:
        """Announce how many micro-batches the step has."""

    def backward(self, surrogate: Tensor) -> None:
        """Add to the global gradient."""

    def step(self) -> Update:
        """Count a micro-batch; move the weights after the last."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """This rank's part of a step."""

    engine: StepEngine
    micro_batches: tuple[Batch, ...]
    """On the engine's device."""

    read: tuple[Batch, ...]
    """The same as they were read: on the host, which need not wait for them."""

    gate_mask: tuple[Tensor | None, ...]
    """Gate mask of each micro-batch."""

    objective: Objective
    place: tuple[int, ...]
    """Seed, epoch, step, rank."""

    aside: Callable[[], Tensor]
    one_round: bool
    """True if the graphs of all micro-batches are kept until the loss is known."""

    rounds: TwoRounds | None

    def forward(self, number: int) -> Any:
        """One forward pass, with its own random state."""
        seed_everything(derive_seed("forward", *self.place, number))
        return self.engine.forward(self.micro_batches[number])

    def backward(
        self,
        surrogate: Callable[..., tuple[Tensor, DistillParts]],
        number: int,
        output: Any,
        whole: Any,
        num_categorised: Tensor,
    ) -> tuple[Tensor, Update]:
        """Backpropagate one micro-batch and count it; its shares, as ``_pack_shares`` gives them, and what the step has
        done.

        Args:
            surrogate: ``losses.total``'s or ``losses.micro_batch``'s.
            output: of this micro-batch.
            whole: what the surrogate has to know of the whole step.
            num_categorised: rows of the whole step that have a category, or their weights added up.
        """
        batch = self.micro_batches[number]
        value, share = surrogate(
            output.prediction,
            output.embedding,
            batch.labels,
            batch.weight,
            whole,
            self.objective.target_weights,
            teacher=batch.teacher,
            gate_mask=self.gate_mask[number],
            distill=self.objective.distill,
        )
        category = self.cross_entropy(number, output)[0] / over(num_categorised)
        if batch.categories is not None:
            value = value + (self.objective.category_weight * category).to(value.dtype)
        self.engine.backward(value)
        return _pack_shares(share, category.detach()), self.engine.step()

    def cross_entropy(self, number: int, output: Any) -> Tensor:
        """Cross-entropy of one micro-batch, as ``cross_entropy_sums`` gives it; zeros without categories."""
        batch = self.micro_batches[number]
        if batch.categories is None:
            return torch.zeros(2, dtype=torch.float64, device=output.prediction.device)
        return cross_entropy_sums(
            output.categories, _category_target(batch, batch.categories), batch.weight, self.objective.category
        )

    @torch.no_grad()
    def distances(self, number: int, output: Any) -> Tensor:
        """Distances of one micro-batch's output from the teacher's, added up over kept rows; zeros without a
        teacher."""
        batch, gate_mask, distill = self.micro_batches[number], self.gate_mask[number], self.objective.distill
        if distill is None or gate_mask is None or batch.teacher is None:
            return torch.zeros(2, dtype=torch.float64, device=output.prediction.device)
        sums = distill_sums(output.prediction, output.embedding, batch.weight, batch.teacher, gate_mask, distill)
        return torch.cat([sums.embedding[None], sums.prediction])


def train_step(
    engine: StepEngine,
    batches: StepBatches,
    objective: Objective,
    *,
    seed: int,
    aside: Tensor | Callable[[], Tensor] | None = None,
    graph_samples: int = sys.maxsize,
    moved: Callable[[], tuple[Batch, ...]] | None = None,
    rounds: TwoRounds | None = None,
) -> StepResult:
    """Move the weights by the gradient of the loss of the global batch of which ``batches`` are this rank's part.

    With several micro-batches and the exact loss, all forward passes come before the first backward pass, since the
    loss needs the sums of all predictions. Where their graphs fit in memory they wait for it; else the first round is
    one without gradient, and a second one repeats it micro-batch by micro-batch. Each forward draws its random state
    from (seed, epoch, step, rank, micro-batch), so that the second round repeats the first, and so that resuming needs
    no generator's state.

    A loss that is not finite is seen by all ranks alike, since all see the same sums: then none backpropagates. With
    scope "micro-batch" that holds for the first micro-batch; a later one's makes the reduced gradient not finite.

    The host waits for the device once a round, for all sums in one copy; what follows from them it computes itself.

    Args:
        aside: numbers that are added up over ranks on the way, at no further cost; as many on every rank. A function is
            called for them while the device is at work on the first round: it may take its time.
        moved: gives the batches on the engine's device, if they have been copied there.
        rounds: compares the predictions of both rounds.
        graph_samples: most samples of padded audio whose graphs fit in memory at a time. How many rounds a rank takes
            need not be what others take: no collective lies in a forward pass, but under ZeRO-3, where it must be 0.
    """
    one_round = len(batches.micro_batches) == 1 or sum(map(padded_samples, batches.micro_batches)) <= graph_samples
    micro_batches = tuple(batch.to(engine.device) for batch in batches.micro_batches) if moved is None else moved()
    assert micro_batches, "a step has at least one micro-batch"
    part = _Part(
        engine=engine,
        micro_batches=micro_batches,
        read=batches.micro_batches,
        gate_mask=tuple(_gate_mask(batch, objective.distill) for batch in micro_batches),
        objective=objective,
        place=(seed, batches.epoch, batches.step, engine.ranks.rank),
        aside=aside if callable(aside) else lambda: torch.zeros(0, dtype=torch.float64) if aside is None else aside,
        one_round=one_round,
        rounds=rounds,
    )
    engine.start_step(len(micro_batches))
    return _micro_batch_step(part) if objective.scope == "micro-batch" else _global_step(part)


def _global_step(part: _Part) -> StepResult:
    """By the CCC of the global batch: all predictions' sums first, then a backward for each micro-batch."""
    objective = part.objective
    outputs: list[Any] = []
    collected: list[tuple[Tensor, ...]] = []
    for number, batch in enumerate(part.micro_batches):
        with torch.set_grad_enabled(part.one_round):
            output = part.forward(number)
        own_sums = batch_sums(
            output.prediction,
            batch.labels,
            batch.weight,
            part.gate_mask[number],
            teacher=batch.teacher,
            distill=objective.distill,
        )
        cross_entropy = part.cross_entropy(number, output).detach()
        collected.append((pack_sums(own_sums), part.distances(number, output), cross_entropy))
        outputs.append(output if part.one_round else None)
        if not part.one_round and part.rounds is not None:
            part.rounds.first(number, output.prediction)
    own = [torch.stack(pieces).sum(0) for pieces in zip(*collected, strict=True)]
    packed, distances, cross_entropy, counts, aside = _summed(*own, _counts(part.read), part.aside())
    sums = unpack_sums(packed, objective.distill)
    parts = DistanceSums(embedding=distances[0], prediction=distances[1:]).over(
        sums.num_distilled, sums.num_distilled_per_dim
    )
    totals = StepTotals(
        ccc_loss=ccc_loss_from_sums(sums.concordance, objective.target_weights),
        ccc=concordance_from_sums(sums.concordance),
        category_loss=mean_cross_entropy(cross_entropy),
        distilled=completed(parts, sums, objective.target_weights),
        num_rows=sums.num_rows,
        num_distilled=sums.num_distilled,
        num_distilled_per_dim=sums.num_distilled_per_dim,
        counts=counts,
        aside=aside,
    )
    update = None
    if math.isfinite(totals.loss(objective)):
        there = unpack_sums(queued(packed, part.engine.device), objective.distill)
        num_categorised = queued(cross_entropy[1], part.engine.device)
        for number in range(len(part.micro_batches)):
            output = outputs[number] if outputs[number] is not None else part.forward(number)
            outputs[number] = None
            if not part.one_round and part.rounds is not None:
                part.rounds.second(number, output.prediction)
            _, update = part.backward(surrogate, number, output, there, num_categorised)
    return totals.result(objective, update)


def _micro_batch_step(part: _Part) -> StepResult:
    """By the mean of the micro-batches' CCCs: one forward and one backward for each micro-batch."""
    objective = part.objective
    first = part.forward(0)
    concordances = _own_concordance(first, part.micro_batches[0])
    divided = [
        pack_counts(micro_counts(batch.labels, batch.weight, gate_mask))
        for batch, gate_mask in zip(part.micro_batches, part.gate_mask, strict=True)
    ]
    known = torch.tensor([sum(_num_categorised(batch, objective) for batch in part.read)], dtype=torch.float64)
    summed, packed, categorised_rows, counts, aside = _summed(
        concordances, torch.stack(divided).sum(0), known, _counts(part.read), part.aside()
    )
    divisors = unpack_counts(packed, objective.distill)
    there = unpack_counts(queued(packed, part.engine.device), objective.distill)
    num_categorised = queued(categorised_rows[0], part.engine.device)
    later = torch.zeros_like(concordances)
    parts: list[Tensor] = []
    update = None
    if torch.isfinite(summed).all():
        for number, batch in enumerate(part.micro_batches):
            output = first if number == 0 else part.forward(number)
            if number > 0:
                later = later + _own_concordance(output, batch)
            share, update = part.backward(micro_surrogate, number, output, there, num_categorised)
            parts.append(share)
    shares = torch.full((3,), math.nan, dtype=torch.float64)
    if parts:
        shares = torch.zeros_like(shares)
        if objective.distill is not None or part.micro_batches[0].categories is not None or len(parts) > 1:
            later, shares = _summed(later, torch.stack(parts).sum(0))
            summed = summed + later
    totals = StepTotals(
        ccc_loss=micro_ccc_loss(summed, divisors.num_scored, objective.target_weights),
        ccc=mean_concordance(summed, divisors.num_scored),
        category_loss=shares[2],
        distilled=DistillParts(embedding=shares[0], prediction=shares[1]),
        num_rows=divisors.num_rows,
        num_distilled=divisors.num_distilled,
        num_distilled_per_dim=divisors.num_distilled_per_dim,
        counts=counts,
        aside=aside,
    )
    return totals.result(objective, update)


def _own_concordance(output: Any, batch: Batch) -> Tensor:
    return micro_concordance(output.prediction, batch.labels, batch.weight)


def _counts(micro_batches: Sequence[Batch]) -> Tensor:
    """Checksum of the keys that count, and number of damaged utterances."""
    # Exact in float64 below 2^53, that is for two million keys.
    keys = (
        zlib.crc32(key.encode())
        for batch in micro_batches
        for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True)
        if weight > 0
    )
    return torch.tensor(
        [float(sum(keys)), float(sum(len(batch.damaged) for batch in micro_batches))], dtype=torch.float64
    )


def _gate_mask(batch: Batch, distill: DistillTerms | None) -> Tensor | None:
    if distill is None:
        return None
    assert batch.teacher is not None, "the loader gives the teacher's outputs whenever a run distils"
    return distill.gate_mask(batch.teacher, batch.labels, batch.weight)


def _num_categorised(batch: Batch, objective: Objective) -> float:
    if batch.categories is None:
        return 0.0
    return float(category_shares(_category_target(batch, batch.categories), batch.weight, objective.category).sum())


def _category_target(batch: Batch, categories: Tensor) -> CategoryTarget:
    """The votes where the run trains on them."""
    return categories if batch.votes is None else batch.votes


def _pack_shares(distilled: DistillParts, category: Tensor) -> Tensor:
    """One micro-batch's shares in the terms that are means over rows: of the embedding, the prediction, the
    category."""
    return torch.stack([distilled.embedding, distilled.prediction, category])


@timed(SUMS)
def _summed(*pieces: Tensor) -> list[Tensor]:
    """These flat tensors, each added up over ranks, on the host; waits for the device and for the ranks once each."""
    return list(sum_over_ranks(torch.cat(fetched(pieces))).split([len(piece) for piece in pieces]))
