"""A step with a CCC for each micro-batch, by plain torch: what it computes, and how often it calls the model."""

import math

import pytest
import torch

from ccts_dist.losses.ccc import concordance
from ccts_dist.losses.total import DistillTerms
from ccts_dist.train.steps.step import Objective, train_step
from tests.unit.train.steps.test_step import CONDITION, WEIGHTS, PlainEngine, step_of, whole_batch

DISTILL = DistillTerms(condition=CONDITION, embedding_loss="mse", embedding_weight=3.0, prediction_weight=2.0)
OBJECTIVE = Objective(target_weights=WEIGHTS, distill=DISTILL, scope="micro-batch")


def test_loss_and_gradient_are_those_of_the_definition_and_each_pass_is_run_once():
    batches = step_of(whole_batch(), [5, 6])  # the middle pass has one row, without labels
    engine, reference = PlainEngine(), PlainEngine()
    result = train_step(engine, batches, OBJECTIVE, seed=0)
    assert len(engine.draws) == 3
    assert engine.num_steps == 3
    means, distances, predictions = torch.zeros(3, dtype=torch.float64), [], []
    for number in (0, 2):
        batch = batches.micro_batches[number]
        counts = batch.weight > 0
        means = means + concordance(reference.forward(batch).prediction[counts], batch.labels[counts]) / 2
    for batch in batches.micro_batches:
        assert batch.teacher is not None
        gate_mask = DISTILL.gate_mask(batch.teacher, batch.labels, batch.weight)
        output = reference.forward(batch)
        distances.append((output.embedding - batch.teacher.embedding)[gate_mask].square().mean(1))
        predictions.append((output.prediction - batch.teacher.prediction)[gate_mask].square().mean(1))
    loss = (torch.tensor(WEIGHTS) * (1 - means)).sum()
    loss = loss + 3.0 * torch.cat(distances).mean() + 2.0 * torch.cat(predictions).mean()
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    assert result.ccc == pytest.approx(means.tolist(), abs=1e-6)
    assert torch.allclose(engine.gradient(), reference.gradient(), rtol=1e-6, atol=1e-9)
    assert (result.num_rows, result.num_distilled) == (11, len(torch.cat(distances)))


def test_one_micro_batch_in_all_is_the_exact_loss():
    exact, own = PlainEngine(), PlainEngine()
    batches = step_of(whole_batch(), [])
    one = train_step(exact, batches, Objective(target_weights=WEIGHTS, distill=DISTILL), seed=0)
    two = train_step(own, batches, OBJECTIVE, seed=0)
    assert one == two
    assert torch.equal(exact.gradient(), own.gradient())


def test_utterances_are_counted_as_with_the_exact_loss():
    batches = step_of(whole_batch(), [3, 6])
    exact = train_step(PlainEngine(), batches, Objective(target_weights=WEIGHTS, distill=DISTILL), seed=0)
    own = train_step(PlainEngine(), batches, OBJECTIVE, seed=0)
    for name in ("key_checksum", "num_rows", "num_distilled", "num_damaged"):
        assert getattr(own, name) == getattr(exact, name)
    assert own.embedding_loss == pytest.approx(exact.embedding_loss)
    assert own.loss != exact.loss


def test_diverged_model_leaves_the_weights_alone():
    engine, batch = PlainEngine(), whole_batch()
    batch.audio[:] = float("inf")
    result = train_step(engine, step_of(batch, [6]), OBJECTIVE, seed=0)
    assert result.update is None
    assert engine.num_steps == 0
    assert math.isnan(result.loss)


def test_later_pass_that_is_not_finite_shows_in_loss_and_gradient():
    engine, batch = PlainEngine(), whole_batch()
    batch.audio[8] = float("inf")
    result = train_step(engine, step_of(batch, [6]), OBJECTIVE, seed=0)
    assert math.isnan(result.loss)
    assert not engine.gradient().isfinite().all()
