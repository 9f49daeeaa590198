import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ccts_dist.batches import TeacherBatch
from ccts_dist.losses.ccc import ccc_loss_from_sums, concordance
from ccts_dist.losses.gate import GATES, ROW_GATES
from ccts_dist.losses.total import (
    BatchSums,
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
from tests.helpers.models.distillation import direct_distillation, every_way, rows_of

NAN = math.nan
ALPHA = (0.5, 0.2, 0.3)
CONDITION = Condition(
    targets=("activation", "valence", "dominance"),
    w=(0.9, 1.0, 1.1),
    b=(0.05, 0.0, -0.05),
    residual_std=(0.2, 0.2, 0.2),
    num_rows=(9, 9, 9),
    splits=("Train",),
)
DISTILL = DistillTerms(condition=CONDITION, embedding_loss="mse", embedding_weight=3.0, prediction_weight=0.7)


class Data:
    """A global batch of 12 rows, whose row 4 has no label at all and row 7 weight 0, and a two-layer student."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        self.x = rand(12, 5)
        self.label = rand(12, 3)
        self.label[4] = NAN
        self.label[2, 1] = NAN
        self.weight = torch.ones(12)
        self.weight[7] = 0
        self.teacher = TeacherBatch(embedding=rand(12, 4), prediction=rand(12, 3), admitted=torch.arange(12) % 3 != 0)
        self.inner = rand(5, 4).requires_grad_()
        self.outer = rand(4, 3).requires_grad_()

    def student(self, rows: slice) -> tuple[Tensor, Tensor]:
        embedding = self.x[rows] @ self.inner
        return embedding, embedding @ self.outer

    def gradients(self) -> list[Tensor]:
        found = [parameter.grad for parameter in (self.inner, self.outer)]
        self.inner.grad = self.outer.grad = None
        assert all(gradient is not None for gradient in found)
        return [gradient for gradient in found if gradient is not None]

    def teacher_of(self, rows: slice) -> TeacherBatch:
        return rows_of(self.teacher, rows)

    def gate_mask(self, distill: DistillTerms) -> Tensor:
        return distill.gate_mask(self.teacher, self.label, self.weight)

    def in_parts(self, parts: list[slice], distill: DistillTerms | None) -> tuple[float, list[Tensor]]:
        """Loss and gradients by surrogates over the parts."""
        gate_mask = None if distill is None else self.gate_mask(distill)
        packed = []
        for rows in parts:
            _, prediction = self.student(rows)
            own = None if gate_mask is None else gate_mask[rows]
            part = batch_sums(
                prediction, self.label[rows], self.weight[rows], own, teacher=self.teacher_of(rows), distill=distill
            )
            packed.append(pack_sums(part))
        sums = unpack_sums(torch.stack(packed).sum(0), distill)
        shares = []
        for rows in parts:
            embedding, prediction = self.student(rows)
            value, share = surrogate(
                prediction,
                embedding,
                self.label[rows],
                self.weight[rows],
                sums,
                ALPHA,
                teacher=self.teacher_of(rows),
                gate_mask=None if gate_mask is None else gate_mask[rows],
                distill=distill,
            )
            value.backward()
            shares.append(share)
        whole = DistillParts(
            embedding=torch.stack([share.embedding for share in shares]).sum(),
            prediction=torch.stack([share.prediction for share in shares]).sum(),
        )
        ccc_loss = ccc_loss_from_sums(sums.concordance, ALPHA)
        loss = with_distillation(ccc_loss, completed(whole, sums, ALPHA), distill)
        return loss.item(), self.gradients()

    def directly(self, distill: DistillTerms | None) -> tuple[float, list[Tensor]]:
        """Loss and gradients by autograd through the plain formula."""
        embedding, prediction = self.student(slice(None))
        rows = self.weight > 0
        loss = (torch.tensor(ALPHA, dtype=torch.float64) * (1 - concordance(prediction[rows], self.label[rows]))).sum()
        if distill is not None:
            loss = loss + direct_distillation(
                embedding, prediction, self.teacher, self.label, self.weight, distill, ALPHA
            )
        loss.backward()
        return loss.item(), self.gradients()


EVERY_WAY = {"ccc alone": None, **every_way(DISTILL)}


@pytest.mark.parametrize("distill", EVERY_WAY.values(), ids=EVERY_WAY)
@pytest.mark.parametrize(
    "parts",
    [[slice(None)], [slice(0, 5), slice(5, 12)], [slice(0, 1), slice(1, 2), slice(2, 12)], [slice(0, 0), slice(0, 12)]],
)
def test_surrogates_of_any_parts_have_loss_and_gradient_of_the_whole(parts: list[slice], distill: DistillTerms | None):
    data = Data()
    loss, gradients = data.in_parts(parts, distill)
    expected_loss, expected = data.directly(distill)
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


def test_every_way_to_distil_has_a_loss_of_its_own():
    losses = [Data().directly(distill)[0] for distill in EVERY_WAY.values()]
    assert len(losses) == 31
    assert len({round(loss, 9) for loss in losses}) == 31


@pytest.mark.parametrize("largest", [1.0, 0.25])
def test_soft_shares_weigh_the_distances_by_hand(largest: float):
    # Two rows at squared distances 1 and 4, and squared prediction differences .25 and 1, with shares 1 and 1/4; or a
    # quarter of each, which add up to less than one row.
    student = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    teacher = TeacherBatch(embedding=torch.zeros(2, 1), prediction=torch.zeros(2, 1))
    gate_mask = largest * torch.tensor([1.0, 0.25], dtype=torch.float64)
    sums = batch_sums(student / 2, torch.full((2, 1), NAN), torch.ones(2), gate_mask)
    assert sums.num_distilled == 1.25 * largest
    _, share = surrogate(
        student / 2, student, torch.full((2, 1), NAN), torch.ones(2), sums, (1.0,),
        teacher=teacher, gate_mask=gate_mask, distill=replace(DISTILL, gate="soft"),
    )  # fmt: skip
    assert share.embedding.item() == pytest.approx((1 + 4 / 4) / 1.25)
    assert share.prediction.item() == pytest.approx((0.25 + 1 / 4) / 1.25)


def test_gate_per_dimension_has_a_mean_for_each_dimension_by_hand():
    # Squared prediction differences (1, 4) and (9, 16); kept are 1, 9 of the first and none of the second.
    prediction = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    teacher = TeacherBatch(embedding=torch.zeros(2, 1), prediction=torch.zeros(2, 2))
    gate_mask = torch.tensor([[True, False], [True, False]])
    embedding, label = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.full((2, 2), NAN)
    sums = batch_sums(prediction, label, torch.ones(2), gate_mask)
    assert sums.num_distilled_per_dim is not None
    assert sums.num_distilled_per_dim.tolist() == [2, 0]
    _, share = surrogate(
        prediction, embedding, label, torch.ones(2), sums, (1.0, 1.0),
        teacher=teacher, gate_mask=gate_mask, distill=replace(DISTILL, gate="per-dimension"),
    )  # fmt: skip
    assert share.prediction.item() == pytest.approx(((1 + 9) / 2 + 0) / 2)
    assert share.embedding.item() == pytest.approx((1 + 9) / 2), "the embedding term takes every row"


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate not in ROW_GATES])
@pytest.mark.parametrize("predictions", ["mse", "ccc"])
def test_utterance_without_labels_is_distilled_wholly_and_not_scored(gate: str, predictions):
    data = Data()
    data.label[[4, 5]] = NAN  # two, so that they have a CCC with the teacher
    distill = replace(DISTILL, gate=gate, prediction_loss=predictions)
    gate_mask = data.gate_mask(distill)
    assert (gate_mask[[4, 5]] == 1).all()
    for terms, label in ((None, data.label), (distill, torch.full_like(data.label, NAN))):
        embedding, prediction = (tensor.detach().requires_grad_() for tensor in data.student(slice(None)))
        sums = batch_sums(prediction, label, data.weight, gate_mask, teacher=data.teacher, distill=terms)
        surrogate(
            prediction,
            embedding,
            label,
            data.weight,
            sums,
            ALPHA,
            teacher=data.teacher,
            gate_mask=gate_mask,
            distill=terms,
        )[0].backward()
        assert prediction.grad is not None
        if terms is None:
            assert (prediction.grad[[4, 5]] == 0).all(), "not scored"
            assert prediction.grad.abs().sum() > 0
        else:
            assert embedding.grad is not None
            assert (prediction.grad[[4, 5]] != 0).all()
            assert (embedding.grad[[4, 5]] != 0).all()


def test_gate_of_the_example_lets_some_rows_through_and_not_others():
    gate_mask = Data().gate_mask(DISTILL)
    assert 2 <= gate_mask.sum() <= 10
    assert gate_mask[4], "a row without any label is distilled"
    assert not gate_mask[7], "a row of weight 0 is not"


def test_row_without_labels_counts_in_the_distillation_only():
    data = Data()
    embedding, prediction = data.student(slice(None))
    embedding.retain_grad()
    only = torch.zeros(12, dtype=torch.bool)
    only[4] = True
    sums = batch_sums(prediction, data.label, data.weight, only)
    assert sums.num_distilled == 1
    assert sums.num_rows == 11
    value, share = surrogate(
        prediction, embedding, data.label, data.weight, sums, (0.0, 0.0, 0.0),
        teacher=data.teacher, gate_mask=only, distill=replace(DISTILL, prediction_weight=0.0),
    )  # fmt: skip
    value.backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum(1).nonzero().flatten().tolist() == [4]
    assert share.embedding.item() == pytest.approx((embedding[4] - data.teacher.embedding[4]).square().mean().item())


@pytest.mark.parametrize(
    "distill",
    [None, DISTILL, replace(DISTILL, embedding_loss="cosine"), replace(DISTILL, prediction_loss="ccc")],
    ids=["ccc alone", "mse", "cosine", "ccc"],
)
def test_part_without_kept_rows_or_labels_still_reaches_every_parameter(distill: DistillTerms | None):
    data = Data()
    rows = slice(4, 5)
    embedding, prediction = data.student(rows)
    none = torch.zeros(1, dtype=torch.bool)
    sums = batch_sums(
        prediction, data.label[rows], data.weight[rows], none, teacher=data.teacher_of(rows), distill=distill
    )
    value, share = surrogate(
        prediction, embedding, data.label[rows], data.weight[rows], sums, ALPHA,
        teacher=data.teacher_of(rows), gate_mask=none, distill=distill,
    )  # fmt: skip
    value.backward()
    assert value == 0
    assert share.embedding == 0
    assert all((gradient == 0).all() for gradient in data.gradients())


def test_row_of_weight_zero_leaks_neither_into_value_nor_into_gradients():
    data = Data()
    embedding, prediction = (tensor.detach().clone() for tensor in data.student(slice(None)))
    embedding[7], prediction[7] = math.inf, NAN
    embedding.requires_grad_()
    prediction.requires_grad_()
    gate_mask = data.gate_mask(DISTILL)
    sums = batch_sums(prediction, data.label, data.weight, gate_mask)
    value, share = surrogate(
        prediction,
        embedding,
        data.label,
        data.weight,
        sums,
        ALPHA,
        teacher=data.teacher,
        gate_mask=gate_mask,
        distill=DISTILL,
    )
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(share.embedding)
    for tensor in (prediction, embedding):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad[7] == 0).all()


def test_standardised_embeddings_are_compared_in_the_caches_units():
    data = Data()
    embedding, prediction = data.student(slice(None))
    residual_std = torch.tensor([2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    gate_mask = torch.ones(12, dtype=torch.bool)
    sums = batch_sums(prediction, data.label, data.weight, gate_mask)
    raw, scaled = (
        surrogate(
            prediction, embedding, data.label, data.weight, sums, ALPHA,
            teacher=data.teacher, gate_mask=gate_mask, distill=distill,
        )[1].embedding.item()
        for distill in (
            DISTILL,
            replace(DISTILL, embedding_mean=torch.zeros(4, dtype=torch.float64), embedding_std=residual_std),
        )
    )  # fmt: skip
    assert scaled == pytest.approx(raw / 4)


def test_sums_survive_packing():
    sums = BatchSums(
        concordance=torch.arange(18, dtype=torch.float64).reshape(6, 3),
        num_distilled=torch.tensor(4.0, dtype=torch.float64),
        num_rows=torch.tensor(5.0, dtype=torch.float64),
    )
    packed = pack_sums(sums)
    assert packed.shape == (20,)
    again = unpack_sums(packed)
    assert torch.equal(again.concordance, sums.concordance)
    assert (again.num_distilled.item(), again.num_rows.item()) == (4, 5)


def test_sums_of_a_gate_per_dimension_and_of_a_ccc_with_the_teacher_survive_packing():
    data, distill = Data(), replace(DISTILL, gate="per-dimension", prediction_loss="ccc")
    _, prediction = data.student(slice(None))
    sums = batch_sums(
        prediction, data.label, data.weight, data.gate_mask(distill), teacher=data.teacher, distill=distill
    )
    assert sums.num_distilled_per_dim is not None
    assert sums.agreement is not None
    packed = pack_sums(sums)
    assert packed.shape == (20 + 3 + 21,)
    again = unpack_sums(packed, distill)
    assert again.num_distilled_per_dim is not None
    assert again.agreement is not None
    assert torch.equal(again.num_distilled_per_dim, sums.num_distilled_per_dim)
    assert torch.equal(again.agreement, sums.agreement)
    assert torch.equal(again.concordance, sums.concordance)
    assert (again.num_distilled, again.num_rows) == (sums.num_distilled, sums.num_rows)


def test_surrogate_of_a_float32_student_is_float32():
    prediction = torch.rand(4, 3, requires_grad=True)
    label = torch.rand(4, 3)
    sums = batch_sums(prediction, label, torch.ones(4), None)
    value, _ = surrogate(prediction, torch.rand(4, 2), label, torch.ones(4), sums, ALPHA)
    assert value.dtype == torch.float32
