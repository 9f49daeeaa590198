"""One step by plain torch: any cut into micro-batches gives the gradient of the loss of the whole batch."""

import math
import sys
import zlib
from dataclasses import replace
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ccts_dist.batches import Batch, StepBatches, TeacherBatch
from ccts_dist.distributed import Ranks
from ccts_dist.losses.ccc import concordance
from ccts_dist.losses.total import DistillTerms
from ccts_dist.records import DIMENSIONS, Condition
from ccts_dist.train.steps.step import Objective, StepResult, train_step
from ccts_dist.train.steps.two_rounds import TwoRounds, words
from ccts_dist.train.zero.engine import Update
from tests.helpers.models.distillation import LOSS_GATES, direct_distillation, every_way, rows_of

CONDITION = Condition(
    targets=DIMENSIONS, w=(1.0, 1.0, 1.0), b=(0.0, 0.0, 0.0), residual_std=(0.2, 0.2, 0.2), num_rows=(9, 9, 9),
    splits=("Train",),
)  # fmt: skip
WEIGHTS = (0.5, 0.3, 0.2)
TWO_ROUNDS = 0
"""No graph fits beside another."""


class Output(NamedTuple):
    embedding: Tensor
    prediction: Tensor
    categories: Tensor


class PlainEngine:
    """Gradients by torch alone; remembers the random number that each forward drew."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.embed, self.predict = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.tell = nn.Linear(5, 4).double()
        self.dropout = nn.Dropout(dropout)
        self.ranks, self.device = Ranks(), torch.device("cpu")
        self.draws: list[float] = []
        self.num_steps = 0

    def forward(self, batch: Batch) -> Output:
        self.draws.append(float(torch.rand(())))
        embedding = self.dropout(self.embed(batch.audio.double()))
        return Output(embedding, self.predict(embedding), self.tell(embedding))

    def start_step(self, num_micro_batches: int) -> None:
        self.num_micro_batches = num_micro_batches

    def backward(self, surrogate: Tensor) -> None:
        surrogate.backward()

    def step(self) -> Update:
        self.num_steps += 1
        return Update(gradient_norm=0.0, skipped=False)

    def gradient(self) -> Tensor:
        parameters = [*self.embed.parameters(), *self.predict.parameters(), *self.tell.parameters()]
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def whole_batch(size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(size, 3, generator=generator)
    labels[2, 1] = float("nan")
    labels[5] = float("nan")  # unlabelled: distilled, not scored
    weight = torch.ones(size)
    weight[7] = 0
    return Batch(
        keys=tuple(f"k{i}" for i in range(size)),
        audio=torch.randn(size, 4, generator=generator),
        num_samples=torch.full((size,), 4),
        labels=labels,
        weight=weight,
        teacher=TeacherBatch(
            embedding=torch.randn(size, 5, generator=generator),
            prediction=torch.rand(size, 3, generator=generator),
            admitted=torch.arange(size) % 4 != 1,
        ),
    )


def rows(batch: Batch, start: int, stop: int) -> Batch:
    assert batch.teacher is not None
    return Batch(
        keys=batch.keys[start:stop],
        audio=batch.audio[start:stop],
        num_samples=batch.num_samples[start:stop],
        labels=batch.labels[start:stop],
        weight=batch.weight[start:stop],
        categories=None if batch.categories is None else batch.categories[start:stop],
        votes=None if batch.votes is None else batch.votes[start:stop],
        teacher=rows_of(batch.teacher, slice(start, stop)),
    )


def step_of(batch: Batch, cuts: list[int]) -> StepBatches:
    return StepBatches(
        epoch=0, step=0, micro_batches=tuple(rows(batch, a, b) for a, b in zip([0, *cuts], [*cuts, 12], strict=True))
    )


DISTILL = DistillTerms(condition=CONDITION, embedding_loss="mse", embedding_weight=3.0, prediction_weight=2.0)
EVERY_WAY = {"ccc alone": None, **every_way(DISTILL)}


def direct_loss(engine: PlainEngine, batch: Batch, distil: DistillTerms | None) -> Tensor:
    """The objective by autograd over the whole batch, written down a second time."""
    output = engine.forward(batch)
    counts = batch.weight > 0
    loss = (torch.tensor(WEIGHTS) * (1 - concordance(output.prediction[counts], batch.labels[counts]))).sum()
    if distil is None:
        return loss
    assert batch.teacher is not None
    return loss + direct_distillation(
        output.embedding, output.prediction, batch.teacher, batch.labels, batch.weight, distil, WEIGHTS
    )


@pytest.mark.parametrize("cuts", [[], [6], [1, 5], [3, 6, 9]])
@pytest.mark.parametrize("distil", EVERY_WAY.values(), ids=EVERY_WAY)
@pytest.mark.parametrize("graph_samples", [TWO_ROUNDS, sys.maxsize])
def test_any_cut_into_micro_batches_gives_the_whole_batchs_gradient_and_loss(cuts, distil, graph_samples):
    batch = whole_batch()
    engine = PlainEngine()
    objective = Objective(target_weights=WEIGHTS, distill=distil)
    result = train_step(engine, step_of(batch, cuts), objective, seed=0, graph_samples=graph_samples)
    reference = PlainEngine()
    loss = direct_loss(reference, batch, distil)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(engine.gradient(), reference.gradient(), rtol=1e-6, atol=1e-9)
    assert result.num_rows == 11
    assert engine.num_steps == len(cuts) + 1


def gate_mask_by(gate: str, cuts: list[int], scope: Literal["global", "micro-batch"] = "global") -> StepResult:
    objective = Objective(target_weights=WEIGHTS, distill=replace(DISTILL, gate=gate), scope=scope)
    return train_step(PlainEngine(), step_of(whole_batch(), cuts), objective, seed=0)


@pytest.mark.parametrize("scope", ["global", "micro-batch"])
@pytest.mark.parametrize("cuts", [[], [3, 6, 9]])
def test_step_reports_what_was_kept_by_each_gate(cuts: list[int], scope):
    batch = whole_batch()
    assert batch.teacher is not None
    counts = batch.weight > 0
    residual = torch.nan_to_num(batch.teacher.prediction - batch.labels, nan=0.0)[counts].double().abs()
    within = residual <= 0.4
    assert 0 < within.all(1).sum() < within.sum() / 3 < 11, "the gates differ"
    assert gate_mask_by("none", cuts, scope).num_distilled == 11
    assert gate_mask_by("any-dimension", cuts, scope).num_distilled == within.all(1).sum()
    assert gate_mask_by("any-dimension", cuts, scope).num_distilled_per_dim == ()
    each = gate_mask_by("per-dimension", cuts, scope)
    assert each.num_distilled_per_dim == tuple(within.sum(0).tolist())
    assert each.num_distilled == pytest.approx(within.sum().item() / 3)
    soft = torch.exp(-(residual.max(1).values ** 2) / (2 * 0.2**2)).sum()
    assert gate_mask_by("soft", cuts, scope).num_distilled == pytest.approx(soft.item(), rel=1e-6)


@pytest.mark.parametrize("gate", LOSS_GATES)
def test_distillation_terms_are_the_global_batchs_where_the_ccc_is_a_micro_batchs(gate: str):
    whole = gate_mask_by(gate, [])
    cut = gate_mask_by(gate, [5, 6], "micro-batch")
    assert cut.embedding_loss == pytest.approx(whole.embedding_loss, rel=1e-9)
    assert cut.prediction_loss == pytest.approx(whole.prediction_loss, rel=1e-9)


def test_second_round_of_micro_batches_repeats_the_random_state_of_the_first():
    engine = PlainEngine(dropout=0.5)
    objective = Objective(target_weights=WEIGHTS)
    train_step(engine, step_of(whole_batch(), [4, 8]), objective, seed=0, graph_samples=TWO_ROUNDS)
    assert engine.draws[:3] == engine.draws[3:]
    assert len(set(engine.draws)) == 3


def test_one_round_has_the_random_state_and_the_gradient_of_two():
    objective = Objective(target_weights=WEIGHTS, distill=DISTILL)
    one, two = PlainEngine(dropout=0.5), PlainEngine(dropout=0.5)
    for engine, graph_samples in ((one, sys.maxsize), (two, TWO_ROUNDS)):
        train_step(engine, step_of(whole_batch(), [4, 8]), objective, seed=0, graph_samples=graph_samples)
    assert one.draws == two.draws[:3]
    assert torch.allclose(one.gradient(), two.gradient(), rtol=1e-12, atol=1e-12)


def test_graphs_are_kept_where_the_padded_audio_of_all_micro_batches_is_within_the_limit():
    """Twelve rows of four samples: 48 in all."""
    for graph_samples, num_forward in ((47, 6), (48, 3)):
        engine = PlainEngine()
        objective = Objective(target_weights=WEIGHTS)
        train_step(engine, step_of(whole_batch(), [4, 8]), objective, seed=0, graph_samples=graph_samples)
        assert len(engine.draws) == num_forward
        assert engine.num_micro_batches == engine.num_steps == 3
    alone = PlainEngine()
    train_step(alone, step_of(whole_batch(), []), Objective(target_weights=WEIGHTS), seed=0, graph_samples=0)
    assert len(alone.draws) == 1, "one pass is differentiated at once"


def test_random_state_depends_on_seed_epoch_step_and_rank():
    draws = []
    for seed, epoch, step, rank in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        engine = PlainEngine()
        engine.ranks = Ranks(rank=rank, num_ranks=2)
        batches = StepBatches(epoch=epoch, step=step, micro_batches=(whole_batch(),))
        train_step(engine, batches, Objective(target_weights=WEIGHTS), seed=seed)
        draws += engine.draws
    assert len(set(draws)) == 5


def test_key_checksum_is_of_the_rows_that_count_however_they_are_cut():
    batch = whole_batch()
    checksums = {
        train_step(PlainEngine(), step_of(batch, cuts), Objective(target_weights=WEIGHTS), seed=0).key_checksum
        for cuts in ([], [6], [3, 6, 9])
    }
    assert len(checksums) == 1
    fewer = train_step(
        PlainEngine(),
        StepBatches(epoch=0, step=0, micro_batches=(rows(batch, 0, 11),)),
        Objective(target_weights=WEIGHTS),
        seed=0,
    )
    assert fewer.key_checksum not in checksums


def test_key_checksum_leaves_out_a_row_of_weight_zero_as_copies_have_it():
    result = train_step(PlainEngine(), step_of(whole_batch(), []), Objective(target_weights=WEIGHTS), seed=0)
    assert result.key_checksum == sum(zlib.crc32(f"k{number}".encode()) for number in range(12) if number != 7)


def test_loss_that_is_not_finite_leaves_the_weights_alone():
    engine = PlainEngine()
    batch = whole_batch()
    batch.audio[0] = float("inf")
    result = train_step(engine, step_of(batch, []), Objective(target_weights=WEIGHTS), seed=0)
    assert result.update is None
    assert engine.num_steps == 0
    assert result.loss != result.loss


def test_row_of_weight_0_may_be_anything():
    engine, reference = PlainEngine(), PlainEngine()
    batch = whole_batch()
    train_step(reference, step_of(batch, []), Objective(target_weights=WEIGHTS), seed=0)
    batch.audio[7] = 1e30
    result = train_step(engine, step_of(batch, []), Objective(target_weights=WEIGHTS), seed=0)
    assert result.update is not None
    assert torch.equal(engine.gradient(), reference.gradient())


@pytest.mark.parametrize("scope", ["global", "micro-batch"])
@pytest.mark.parametrize("cuts", [[], [6], [1, 5], [3, 6, 9]])
def test_cross_entropy_of_categories_is_that_of_the_whole_batch_by_any_cut(cuts: list[int], scope):
    category = torch.tensor([0, 3, -1, 1, 2, 2, 0, 1, -1, 3, 3, 0])  # row 7 has weight 0
    batch = replace(whole_batch(), categories=category)
    engine = PlainEngine()
    # The targets' weights are 0: with scope "micro-batch" their loss depends on the cut.
    objective = Objective(target_weights=(0.0, 0.0, 0.0), category_weight=2.0, distill=DISTILL, scope=scope)
    result = train_step(engine, step_of(batch, cuts), objective, seed=0)
    reference = PlainEngine()
    counts = (batch.weight > 0) & (category >= 0)
    output = reference.forward(batch)
    expected = nn.functional.cross_entropy(output.categories[counts], category[counts])
    assert batch.teacher is not None
    distilled = direct_distillation(
        output.embedding, output.prediction, batch.teacher, batch.labels, batch.weight, DISTILL, WEIGHTS
    )
    loss = 2.0 * expected + distilled
    loss.backward()
    assert counts.sum() == 9
    assert result.category_loss == pytest.approx(expected.item(), abs=1e-9)
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(engine.gradient(), reference.gradient(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scope", ["global", "micro-batch"])
@pytest.mark.parametrize("cuts", [[], [6], [1, 5], [3, 6, 9]])
def test_cross_entropy_of_votes_is_that_of_the_whole_batch_by_any_cut(cuts: list[int], scope):
    """Torch's own cross-entropy with probabilities; rows 2 and 8 have no votes, row 7 has weight 0."""
    votes = torch.rand(12, 4, generator=torch.Generator().manual_seed(7)).softmax(dim=1)
    votes[[2, 8]] = math.nan
    batch = replace(whole_batch(), categories=torch.full((12,), -1), votes=votes)
    engine, reference = PlainEngine(), PlainEngine()
    objective = Objective(target_weights=(0.0, 0.0, 0.0), category_weight=2.0, scope=scope)
    result = train_step(engine, step_of(batch, cuts), objective, seed=0)
    counts = (batch.weight > 0) & ~votes[:, 0].isnan()
    output = reference.forward(batch)
    expected = nn.functional.cross_entropy(output.categories[counts], votes[counts].double())
    (2.0 * expected + 0.0 * output.prediction.sum()).backward()
    assert counts.sum() == 9
    assert result.category_loss == pytest.approx(expected.item(), abs=1e-7)
    assert torch.allclose(engine.gradient(), reference.gradient(), rtol=1e-5, atol=1e-8)


def test_batches_without_categories_leave_the_loss_as_it_is_whatever_the_weight():
    batch = whole_batch()
    losses = [
        train_step(
            PlainEngine(), step_of(batch, [4]), Objective(target_weights=WEIGHTS, category_weight=weight), seed=0
        ).loss
        for weight in (0.0, 7.0)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scope", ["global", "micro-batch"])
def test_numbers_beside_the_loss_are_asked_for_while_the_device_is_at_work_on_the_first_round(scope):
    engine = PlainEngine()
    calls: list[str] = []
    forward, backward = engine.forward, engine.backward
    engine.forward = lambda batch: (calls.append("forward"), forward(batch))[1]  # type: ignore[method-assign]
    engine.backward = lambda value: (calls.append("backward"), backward(value))[1]  # type: ignore[method-assign]

    def aside() -> Tensor:
        calls.append("aside")
        return torch.tensor([3.0], dtype=torch.float64)

    objective = Objective(target_weights=WEIGHTS, scope=scope)
    result = train_step(engine, step_of(whole_batch(), [6]), objective, seed=0, aside=aside)
    assert result.aside == (3.0,)
    first = 1 if scope == "micro-batch" else 2
    assert calls[: first + 1] == ["forward"] * first + ["aside"]
    assert calls.count("backward") == 2


def test_batches_that_have_been_copied_are_taken_as_they_are():
    batches, halves = step_of(whole_batch(), [6]), PlainEngine()
    doubled = tuple(replace(batch, audio=2 * batch.audio) for batch in batches.micro_batches)
    objective = Objective(target_weights=WEIGHTS)
    copied = train_step(PlainEngine(), batches, objective, seed=0, moved=lambda: doubled)
    direct = train_step(halves, replace(batches, micro_batches=doubled), objective, seed=0)
    assert copied == direct


def test_rounds_that_differ_by_more_than_rounding_are_reported_once():
    rounds, engine = TwoRounds(torch.float32), PlainEngine(dropout=0.5)
    objective, batches = Objective(target_weights=WEIGHTS), step_of(whole_batch(), [6])
    train_step(engine, batches, objective, seed=0, rounds=rounds, graph_samples=TWO_ROUNDS)
    assert rounds.difference() == 0, "each pass draws from its own state"
    rounds = TwoRounds(torch.float32)
    forward = engine.forward

    def drifting(batch: Batch) -> Output:
        output = forward(batch)
        return output._replace(prediction=output.prediction + (0.25 if torch.is_grad_enabled() else 0.0))

    engine.forward = drifting  # type: ignore[method-assign]
    train_step(engine, batches, objective, seed=0, rounds=rounds, graph_samples=TWO_ROUNDS)
    found = rounds.difference()
    assert found == pytest.approx(0.25)
    assert "differ by 0.25" in words(found)
    train_step(engine, batches, objective, seed=0, rounds=rounds, graph_samples=TWO_ROUNDS)
    assert rounds.difference() == 0


def test_step_of_one_round_has_nothing_to_compare():
    rounds = TwoRounds(torch.float32)
    train_step(PlainEngine(), step_of(whole_batch(), []), Objective(target_weights=WEIGHTS), seed=0, rounds=rounds)
    assert rounds.difference() == 0


class CategoriesAlone(PlainEngine):
    """Predicts no target."""

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        return output._replace(prediction=output.embedding[:, :0])


@pytest.mark.parametrize("scope", ["global", "micro-batch"])
@pytest.mark.parametrize("cuts", [[], [6], [1, 5], [3, 6, 9]])
@pytest.mark.parametrize("graph_samples", [TWO_ROUNDS, sys.maxsize])
def test_categories_alone_give_the_mean_cross_entropy_and_its_gradient_in_any_cut(scope, cuts, graph_samples):
    batch = whole_batch()
    categories = torch.tensor([0, 3, -1, 1, 1, 2, 0, 3, 2, -1, 1, 0])  # row 7 has no weight
    batch = replace(batch, labels=batch.labels[:, :0], categories=categories)
    engine, reference = CategoriesAlone(), CategoriesAlone()
    objective = Objective(target_weights=(), category_weight=2.0, scope=scope)
    result = train_step(engine, step_of(batch, cuts), objective, seed=0, graph_samples=graph_samples)
    counts = (categories >= 0) & (batch.weight > 0)
    wanted = 2 * nn.functional.cross_entropy(reference.forward(batch).categories[counts], categories[counts])
    wanted.backward()
    assert result.loss == pytest.approx(wanted.item(), abs=1e-9)
    assert (result.ccc, result.ccc_loss) == ((), 0.0)
    assert torch.allclose(engine.gradient(), reference.gradient(), rtol=1e-6, atol=1e-9)
