"""CCC per micro-batch on two gloo ranks of two micro-batches each, against the definition in float64 by one process."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ccts_dist.batches import Batch, StepBatches, TeacherBatch
from ccts_dist.distributed import rank_facts, sum_over_ranks
from ccts_dist.losses.ccc import concordance
from ccts_dist.losses.total import DistillTerms
from ccts_dist.records import DIMENSIONS, Condition
from ccts_dist.train.steps.step import Objective, StepResult, train_step
from ccts_dist.train.zero.engine import Update
from tests.helpers.ranks.processes import run_on_ranks

ALPHA = (0.4, 0.35, 0.25)
ROWS = 13
CUTS = {0: [(0, 5), (5, 7)], 1: [(7, 13), (12, 13)]}
"""Rows of each rank's micro-batches; rank 0's second has no labels, rank 1's second is a copy at weight 0."""

DISTILL = DistillTerms(
    embedding_loss="mse",
    condition=Condition(
        targets=DIMENSIONS, w=(1.0, 1.0, 1.0), b=(0.0, 0.0, 0.0), residual_std=(0.1, 0.1, 0.1), num_rows=(9, 9, 9),
        splits=("Train",),
    ),
    embedding_weight=5.0,
    prediction_weight=0.5,
)  # fmt: skip


class Output(NamedTuple):
    embedding: Tensor
    prediction: Tensor


class FloatEngine:
    """A student of two layers in float64 whose gradients torch adds up on this rank."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.ranks, self.device = rank_facts(), torch.device("cpu")
        self.weights = [
            torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((6, 4), (4, 3))
        ]
        self.num_steps = 0

    def forward(self, batch: Batch) -> Output:
        embedding = torch.tanh(batch.audio.double() @ self.weights[0])
        return Output(embedding, embedding @ self.weights[1])

    def start_step(self, num_micro_batches: int) -> None:
        self.num_micro_batches = num_micro_batches

    def backward(self, surrogate: Tensor) -> None:
        surrogate.backward()

    def step(self) -> Update:
        self.num_steps += 1
        return Update(gradient_norm=0.0, skipped=False)


def rows(first: int, last: int, *, counts: bool = True) -> Batch:
    """Some of thirteen rows; those of the first pass are far off the teacher."""
    generator = torch.Generator().manual_seed(11)
    audio, label = torch.rand(ROWS, 6, generator=generator), torch.rand(ROWS, 3, generator=generator)
    embedding = torch.rand(ROWS, 4, generator=generator)
    error = torch.where(torch.arange(ROWS) < 5, 0.5, 0.1)[:, None]
    teacher = label + error
    label[5:7] = torch.nan
    label[9, 1] = torch.nan
    own = slice(first, last)
    return Batch(
        keys=tuple(f"k{row}" for row in range(first, last)),
        audio=audio[own],
        num_samples=torch.full((last - first,), 6),
        labels=label[own],
        weight=torch.full((last - first,), float(counts)),
        teacher=TeacherBatch(embedding=embedding[own], prediction=teacher[own]),
    )


def on_rank(distil: bool, broken: bool) -> tuple[StepResult, int, list[Tensor]]:
    """One step on one rank: its result, the micro-batches that were backpropagated, and the gradients over all
    ranks."""
    engine = FloatEngine()
    (first, second) = CUTS[engine.ranks.rank]
    micro_batches = (rows(*first), rows(*second, counts=engine.ranks.rank == 0))
    if broken and engine.ranks.rank == 1:
        micro_batches[0].audio[0] = torch.nan
    objective = Objective(target_weights=ALPHA, distill=DISTILL if distil else None, scope="micro-batch")
    result = train_step(engine, StepBatches(epoch=0, step=0, micro_batches=micro_batches), objective, seed=0)
    grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in engine.weights]
    return result, engine.num_steps, [sum_over_ranks(gradient) for gradient in grads]


def all_cases() -> dict[str, tuple[StepResult, int, list[Tensor]]]:
    return {"ccc": on_rank(False, False), "distilled": on_rank(True, False), "broken": on_rank(True, True)}


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[str, tuple[StepResult, int, list[Tensor]]]]:
    return run_on_ranks(all_cases, 2)


def by_definition(distil: bool) -> tuple[float, list[Tensor]]:
    engine = FloatEngine()
    scored = [rows(*CUTS[0][0]), rows(*CUTS[1][0])]  # the two micro-batches with labels
    ccc = torch.stack([concordance(engine.forward(batch).prediction, batch.labels) for batch in scored])
    loss = (torch.tensor(ALPHA, dtype=torch.float64) * (1 - ccc).mean(0)).sum()
    if distil:
        batch = rows(0, ROWS)
        assert batch.teacher is not None
        gate_mask = DISTILL.gate_mask(batch.teacher, batch.labels, batch.weight)
        assert 0 < gate_mask.sum() < ROWS
        output = engine.forward(batch)
        far = (output.embedding - batch.teacher.embedding.double())[gate_mask].square().mean()
        off = (output.prediction - batch.teacher.prediction.double())[gate_mask].square().mean()
        loss = loss + DISTILL.embedding_weight * far + DISTILL.prediction_weight * off
    return loss.item(), list(torch.autograd.grad(loss, engine.weights))


@pytest.mark.parametrize("case", ["ccc", "distilled"])
def test_gradient_on_two_ranks_of_uneven_micro_batches_is_that_of_the_definition(on_two_ranks, case: str):
    expected_loss, expected = by_definition(case == "distilled")
    for rank in on_two_ranks:
        result, num_steps, gradients = rank[case]
        assert num_steps == 2
        assert result.loss == pytest.approx(expected_loss, abs=1e-10)
        assert result.num_rows == ROWS
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_loss_that_is_not_finite_on_one_rank_leaves_the_step_out_on_both(on_two_ranks):
    for rank in on_two_ranks:
        result, num_steps, gradients = rank["broken"]
        assert result.update is None
        assert num_steps == 0
        assert all((gradient == 0).all() for gradient in gradients)
