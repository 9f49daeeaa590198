"""Ways to take the same steps, turn by turn, in one process per rank; started by ``step.py``.

Arguments: RUN.toml TURNS STEPS OUT.json. The batches are read beforehand and are the same for every way; every way that
uses the engine uses the same one. Rank 0 writes the seconds of every turn of every way.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ccts_dist.batches import Batch, StepBatches
from ccts_dist.config import read_run
from ccts_dist.distributed import barrier, process_group, rank_facts, sum_over_ranks
from ccts_dist.losses.ccc import ccc_loss_from_sums, concordance
from ccts_dist.losses.distill import embedding_distance, standardize
from ccts_dist.losses.total import batch_sums, pack_sums, surrogate, unpack_sums
from ccts_dist.model.emotion import build_model, parameter_groups
from ccts_dist.process.seeds import derive_seed, seed_everything
from ccts_dist.train.experiment import Experiment, open_experiment
from ccts_dist.train.optim import build_optimizer
from ccts_dist.train.steps.step import Objective, train_step
from ccts_dist.train.zero.engine import Engine

Step = Callable[[StepBatches], None]
REPEATS = 100
"""Of the loss alone."""


def main() -> None:
    """Time every way."""
    run_file, turns, steps, out = Path(sys.argv[-4]), int(sys.argv[-3]), int(sys.argv[-2]), Path(sys.argv[-1])
    run, ranks = read_run(run_file), rank_facts()
    with process_group(ranks):
        experiment = open_experiment(run, ranks)
        batches = list(islice(experiment.loader.epoch(0), steps))
        optimizer = build_optimizer(parameter_groups(experiment.model), run.optim)
        engine = Engine(experiment.model, optimizer, run, ranks=ranks)
        engine.train(True)
        ways = _ways(experiment, engine)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns + 1):
            for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                barrier()
                began = time.perf_counter()
                for batch in batches:
                    ways[name](batch)
                if turn > 0:  # the first one warms up
                    seconds[name].append(time.perf_counter() - began)
        reported = {"seconds": seconds, "steps": len(batches), "num_micro_batches": len(batches[0].micro_batches)}
        reported["loss"] = _time_losses(batches[0].micro_batches[0], experiment.objective)
        if ranks.is_first:
            out.write_text(json.dumps(reported))
        barrier()


def _ways(experiment: Experiment, engine: Engine) -> dict[str, Step]:
    objective = experiment.objective
    by_scope = {scope: replace(objective, scope=scope) for scope in ("global", "micro-batch")}

    def ours(scope: str) -> Step:
        return lambda batches: _check(train_step(engine, batches, by_scope[scope], seed=0).loss)

    def with_engine(batches: StepBatches) -> None:
        engine.start_step(len(batches.micro_batches))
        for batch in batches.micro_batches:
            engine.backward(_plain_loss(engine.forward(batch), batch, objective))
            engine.step()

    ways = {"global CCC": ours("global"), "CCC per micro-batch": ours("micro-batch"), "engine, plain loss": with_engine}
    if experiment.ranks.num_ranks == 1:
        ways["bare torch"] = _bare_torch(experiment)
    return ways


def _bare_torch(experiment: Experiment) -> Step:
    """Forward, backward and optimizer as one would write them without any library but torch."""
    run, objective = experiment.run, experiment.objective
    seed_everything(derive_seed("model", run.seed))
    model = build_model(run.model).train()
    optimizer = build_optimizer(parameter_groups(model), run.optim)

    def step(batches: StepBatches) -> None:
        optimizer.zero_grad()
        for batch in batches.micro_batches:
            _plain_loss(model(batch.audio, batch.num_samples), batch, objective).backward()
        if run.optim.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.optim.max_grad_norm)
        optimizer.step()

    return step


def _plain_loss(output: Any, batch: Batch, objective: Objective) -> Tensor:
    """The objective over the rows of this micro-batch by autograd, as one rank alone would have it."""
    alpha = torch.tensor(objective.target_weights)
    loss = (alpha * (1 - concordance(output.prediction, batch.labels))).sum()
    distill = objective.distill
    if distill is not None and batch.teacher is not None:
        gate_mask = distill.gate_mask(batch.teacher, batch.labels, batch.weight)
        student, teacher = output.embedding[gate_mask], batch.teacher.embedding[gate_mask]
        if distill.embedding_mean is not None and distill.embedding_std is not None:
            student = standardize(student, distill.embedding_mean, distill.embedding_std)
            teacher = standardize(teacher, distill.embedding_mean, distill.embedding_std)
        loss = (
            loss
            + distill.embedding_weight * embedding_distance(student, teacher, distance=distill.embedding_loss).mean()
        )
    return loss


def _check(loss: float) -> None:
    assert loss == loss, "the loss is not a number, and what was timed no training"


def _time_losses(batch: Batch, objective: Objective) -> dict[str, float]:
    """Seconds of the two CCC losses alone, forward and backward to the prediction, the ranks in step; medians."""
    alpha = objective.target_weights
    prediction = torch.rand_like(batch.labels).requires_grad_()

    def exact() -> None:
        sums = sum_over_ranks(pack_sums(batch_sums(prediction, batch.labels, batch.weight, None)))
        float(ccc_loss_from_sums(unpack_sums(sums).concordance, alpha))
        value, _ = surrogate(prediction, prediction, batch.labels, batch.weight, unpack_sums(sums), alpha)
        value.backward()

    def plain() -> None:
        (torch.tensor(alpha) * (1 - concordance(prediction, batch.labels))).sum().backward()

    return {"exact": _median_s(exact), "plain": _median_s(plain)}


def _median_s(action: Callable[[], None]) -> float:
    seconds: Sequence[float] = []
    for _ in range(REPEATS):
        barrier()
        began = time.perf_counter()
        action()
        seconds = [*seconds, time.perf_counter() - began]
    return median(seconds)


if __name__ == "__main__":
    main()
