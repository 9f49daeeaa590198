"""The CCC of each micro-batch, averaged: a number worked by hand, and its gradient against autograd."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ccts_dist.batches import TeacherBatch
from ccts_dist.losses.ccc import concordance
from ccts_dist.losses.micro_batch import (
    MicroCounts,
    mean_concordance,
    micro_ccc_loss,
    micro_concordance,
    micro_counts,
    micro_surrogate,
    pack_counts,
    unpack_counts,
)
from ccts_dist.losses.total import DistillParts, DistillTerms, with_distillation
from ccts_dist.records import Condition
from tests.helpers.models.distillation import direct_distillation, every_way, rows_of

NAN = math.nan
ALPHA = (0.5, 0.2, 0.3)
CONDITION = Condition(
    targets=("activation", "valence", "dominance"), w=(1.0, 1.0, 1.0), b=(0.0, 0.0, 0.0), residual_std=(0.3, 0.3, 0.3),
    num_rows=(9, 9, 9), splits=("Train",),
)  # fmt: skip
DISTILL = DistillTerms(
    condition=CONDITION, embedding_loss="mse", embedding_weight=3.0, prediction_weight=0.7, threshold=1.0
)
ROWS = 12


def test_mean_over_the_micro_batches_that_have_two_labels_by_hand():
    # CCC of the first dimension: 1, then 2 * 0.125 / (0.25 + 0.0625 + 0.25^2) = 2/3, then none: its mean is 5/6.
    # Of the second: -1, then none (one label), then none.
    micro_batches = [
        ([[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]),
        ([[0.0, 0.3], [1.0, 0.4]], [[0.0, NAN], [0.5, 0.9]]),
        ([[0.7, 0.2]], [[0.1, 0.9]]),
    ]
    summed, packed = torch.zeros(2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for prediction, label in micro_batches:
        p, y, weight = torch.tensor(prediction), torch.tensor(label), torch.ones(len(label))
        summed += micro_concordance(p, y, weight)
        packed += pack_counts(micro_counts(y, weight, None))
    counts = unpack_counts(packed)
    assert counts.num_scored.tolist() == [2, 1]
    assert (counts.num_rows.item(), counts.num_distilled.item()) == (5, 0)
    assert mean_concordance(summed, counts.num_scored).tolist() == pytest.approx([5 / 6, -1], abs=1e-6)
    # 0.75 * (1 - 5/6) + 0.25 * (1 + 1)
    assert micro_ccc_loss(summed, counts.num_scored, (0.75, 0.25)).item() == pytest.approx(0.625, abs=1e-6)


def test_dimension_that_no_micro_batch_scores_contributes_nothing():
    summed, scored = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.0], [1.0, 0.0]))
    assert micro_ccc_loss(summed, scored, (0.5, 0.5)).item() == 0.25
    assert mean_concordance(summed, scored).tolist() == [0.5, 0]


class Data:
    """A step of 12 rows, whose row 4 has no label at all and row 7 weight 0, and a two-layer student."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        self.x, self.label, self.weight = rand(ROWS, 5), rand(ROWS, 3), torch.ones(ROWS)
        self.label[4] = NAN
        self.label[2, 1] = NAN
        self.weight[7] = 0
        admitted = torch.arange(ROWS) % 3 != 0
        self.teacher = TeacherBatch(embedding=rand(ROWS, 4), prediction=rand(ROWS, 3), admitted=admitted)
        self.weights = [rand(5, 4).requires_grad_(), rand(4, 3).requires_grad_()]

    def student(self, rows: slice) -> tuple[Tensor, Tensor]:
        embedding = self.x[rows] @ self.weights[0]
        return embedding, embedding @ self.weights[1]

    def gate_mask(self, distill: DistillTerms | None) -> Tensor | None:
        return None if distill is None else distill.gate_mask(self.teacher, self.label, self.weight)

    def gradients(self) -> list[Tensor]:
        found = [parameter.grad for parameter in self.weights]
        return [gradient for gradient in found if gradient is not None]


def by_surrogates(cuts: Sequence[slice], distill: DistillTerms | None) -> tuple[float, list[Tensor]]:
    """Loss and gradients, one micro-batch after the other."""
    data = Data()
    gate_mask = data.gate_mask(distill)
    own = [None if gate_mask is None else gate_mask[rows] for rows in cuts]
    packed = [micro_counts(data.label[rows], data.weight[rows], k) for rows, k in zip(cuts, own, strict=True)]
    counts = unpack_counts(torch.stack([pack_counts(one) for one in packed]).sum(0), distill)
    summed, shares = torch.zeros(3, dtype=torch.float64), []
    for rows, k in zip(cuts, own, strict=True):
        embedding, prediction = data.student(rows)
        label, weight = data.label[rows], data.weight[rows]
        teacher = rows_of(data.teacher, rows)
        summed += micro_concordance(prediction, label, weight)
        value, share = micro_surrogate(
            prediction, embedding, label, weight, counts, ALPHA, teacher=teacher, gate_mask=k, distill=distill
        )
        value.backward()
        shares.append(share)
    whole = DistillParts(
        embedding=torch.stack([share.embedding for share in shares]).sum(),
        prediction=torch.stack([share.prediction for share in shares]).sum(),
    )
    loss = with_distillation(micro_ccc_loss(summed, counts.num_scored, ALPHA), whole, distill)
    return loss.item(), data.gradients()


def by_autograd(cuts: Sequence[slice], distill: DistillTerms | None) -> tuple[float, list[Tensor]]:
    """The definition, written down a second time."""
    data = Data()
    loss = torch.zeros((), dtype=torch.float64)
    for dimension in range(3):
        values = []
        for rows in cuts:
            counts = data.weight[rows] > 0
            label = data.label[rows][counts]
            if (~label[:, dimension].isnan()).sum() >= 2:
                values.append(1 - concordance(data.student(rows)[1][counts], label)[dimension])
        if values:
            loss = loss + ALPHA[dimension] * torch.stack(values).mean()
    if distill is not None:
        embedding, prediction = data.student(slice(None))
        loss = loss + direct_distillation(embedding, prediction, data.teacher, data.label, data.weight, distill, ALPHA)
    loss.backward()
    return loss.item(), data.gradients()


CUTS = {
    "one": [slice(0, 12)],
    "halves": [slice(0, 6), slice(6, 12)],
    "uneven, one without two labels": [slice(0, 4), slice(4, 6), slice(6, 12)],
    "one without a row that counts": [slice(0, 7), slice(7, 8), slice(8, 12)],
}


EVERY_WAY = {
    "ccc alone": None,
    **{name: way for name, way in every_way(DISTILL).items() if way.prediction_loss == "mse"},
}


@pytest.mark.parametrize("distill", EVERY_WAY.values(), ids=EVERY_WAY)
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_surrogates_have_loss_and_gradient_of_the_definition(cuts, distill):
    loss, gradients = by_surrogates(cuts, distill)
    expected_loss, expected = by_autograd(cuts, distill)
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


def test_gate_of_the_example_lets_some_rows_through_and_not_others():
    gate_mask = Data().gate_mask(DISTILL)
    assert gate_mask is not None
    assert 0 < gate_mask.sum() < ROWS


def test_ccc_with_the_teacher_is_not_for_micro_batches():
    with pytest.raises(AssertionError, match="the run file's reader refuses it"):
        by_surrogates(CUTS["halves"], replace(DISTILL, prediction_loss="ccc"))


def test_it_is_another_loss_with_another_cut():
    assert abs(by_surrogates(CUTS["one"], None)[0] - by_surrogates(CUTS["halves"], None)[0]) > 1e-3


def test_counts_survive_packing():
    counts = MicroCounts(
        num_scored=torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64),
        num_distilled=torch.tensor(4.0, dtype=torch.float64),
        num_rows=torch.tensor(5.0, dtype=torch.float64),
    )
    each = replace(counts, num_distilled_per_dim=torch.tensor([2.0, 6.0, 7.0], dtype=torch.float64))
    again = unpack_counts(pack_counts(each), replace(DISTILL, gate="per-dimension"))
    assert again.num_distilled_per_dim is not None
    assert again.num_distilled_per_dim.tolist() == [2, 6, 7]
    again = unpack_counts(pack_counts(counts))
    assert again.num_distilled_per_dim is None
    assert again.num_scored.tolist() == [3, 1, 0]
    assert (again.num_distilled.item(), again.num_rows.item()) == (4, 5)
