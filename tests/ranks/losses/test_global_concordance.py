"""The global CCC and the distillation terms on two gloo ranks, against the plain formula in float64 by one process."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ccts_dist.batches import TeacherBatch
from ccts_dist.distributed import rank_facts, sum_over_ranks
from ccts_dist.losses.ccc import ccc_loss_from_sums, concordance
from ccts_dist.losses.gate import gated_on
from ccts_dist.losses.total import (
    DistillParts,
    DistillTerms,
    batch_sums,
    completed,
    pack_sums,
    surrogate,
    unpack_sums,
    with_distillation,
)
from ccts_dist.records import Condition
from tests.helpers.models.distillation import direct_distillation, rows_of
from tests.helpers.ranks.processes import run_on_ranks

ALPHA = (0.4, 0.35, 0.25)
ROWS = 13
DISTILL = DistillTerms(
    embedding_loss="mse",
    condition=Condition(
        targets=("activation", "valence", "dominance"),
        w=(1.0, 1.0, 1.0),
        b=(0.0, 0.0, 0.0),
        residual_std=(0.1, 0.1, 0.1),
        num_rows=(9, 9, 9),
        splits=("Train",),
    ),
    embedding_weight=5.0,
    prediction_weight=0.5,
)


class Data:
    """Thirteen rows, the first five of them far off the teacher: a rank that has those keeps none."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(11)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(dtype)

        self.x = rand(ROWS, 6)
        self.label = rand(ROWS, 3)
        self.label[[2, 9], [0, 1]] = torch.nan
        error = torch.where(torch.arange(ROWS) < 5, 0.5, 0.1)[:, None].to(dtype)
        self.teacher = TeacherBatch(
            embedding=rand(ROWS, 4),
            prediction=torch.nan_to_num(self.label, nan=0.5) + error,
            admitted=torch.arange(ROWS) % 3 > 0,
        )
        self.weights = [rand(6, 4).requires_grad_(), rand(4, 3).requires_grad_()]

    def student(self, rows: slice) -> tuple[Tensor, Tensor]:
        embedding = torch.tanh(self.x[rows] @ self.weights[0])
        return embedding, embedding @ self.weights[1]


def surrogate_gradients(cuts: list[int], distill: DistillTerms | None) -> tuple[float, int, list[Tensor]]:
    """On one rank: the loss, how many of its rows are kept, and the gradients summed over all ranks."""
    rank = rank_facts().rank
    rows, data = slice(cuts[rank], cuts[rank + 1]), Data(torch.float32)
    label, weight = data.label[rows], torch.ones(len(data.label[rows]))
    teacher = rows_of(data.teacher, rows)
    gate_mask = None if distill is None else distill.gate_mask(teacher, label, weight)
    embedding, prediction = data.student(rows)
    own = batch_sums(prediction, label, weight, gate_mask, teacher=teacher, distill=distill)
    sums = unpack_sums(sum_over_ranks(pack_sums(own)), distill)
    value, parts = surrogate(
        prediction, embedding, label, weight, sums, ALPHA, teacher=teacher, gate_mask=gate_mask, distill=distill
    )
    value.backward()
    shares = sum_over_ranks(torch.stack([parts.embedding, parts.prediction]))
    whole = completed(DistillParts(embedding=shares[0], prediction=shares[1]), sums, ALPHA)
    loss = with_distillation(ccc_loss_from_sums(sums.concordance, ALPHA), whole, distill)
    gradients = []
    for weights in data.weights:
        assert weights.grad is not None
        gradients.append(sum_over_ranks(weights.grad.double()))
    return loss.item(), 0 if gate_mask is None else int(gate_mask.sum()), gradients


def plain_gradients(distill: DistillTerms | None) -> tuple[float, list[Tensor]]:
    """The formula over the whole batch in float64, differentiated by autograd."""
    data = Data(torch.float64)
    embedding, prediction = data.student(slice(None))
    loss = (torch.tensor(ALPHA, dtype=torch.float64) * (1 - concordance(prediction, data.label))).sum()
    if distill is not None:
        loss = loss + direct_distillation(
            embedding, prediction, data.teacher, data.label, torch.ones(ROWS), distill, ALPHA
        )
    gradients = torch.autograd.grad(loss, data.weights)
    return loss.item(), list(gradients)


CUTS = {"5+8": [0, 5, ROWS], "12+1": [0, 12, ROWS]}
TERMS = {
    "ccc": None,
    "mse": DISTILL,
    "l2": replace(DISTILL, embedding_loss="l2"),
    "cosine": replace(DISTILL, embedding_loss="cosine"),
    "ccc with the teacher": replace(DISTILL, prediction_loss="ccc"),
    "per dimension": replace(DISTILL, gate="per-dimension"),
    "soft": replace(DISTILL, gate="soft", prediction_loss="ccc"),
    "by key": replace(DISTILL, gate="keys", embedding_loss="l2"),
    "one target": replace(DISTILL, condition=gated_on(DISTILL.condition, DISTILL.condition.targets[:1])),
}


def all_gradients() -> dict[tuple[str, str], tuple[float, int, list[Tensor]]]:
    """On one rank: every case, one after the other."""
    return {(cuts, terms): surrogate_gradients(CUTS[cuts], TERMS[terms]) for cuts in CUTS for terms in TERMS}


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[tuple[str, str], tuple[float, int, list[Tensor]]]]:
    return run_on_ranks(all_gradients, 2)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("terms", TERMS)
def test_gradient_on_two_ranks_of_uneven_sizes_is_that_of_one_process_in_float64(on_two_ranks, cuts: str, terms: str):
    expected_loss, expected = plain_gradients(TERMS[terms])
    for rank in on_two_ranks:
        loss, _, gradients = rank[cuts, terms]
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_rank_whose_rows_are_all_gated_out_is_among_the_cases(on_two_ranks):
    gate_mask = [rank["5+8", "mse"][1] for rank in on_two_ranks]
    assert gate_mask[0] == 0
    assert gate_mask[1] >= 5
