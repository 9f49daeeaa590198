"""A few real steps of a run file in this process: experiment, engine, ``train_step``, figures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ccts_dist.config import RunConfig, read_run
from ccts_dist.distributed import rank_facts
from ccts_dist.model.emotion import parameter_groups
from ccts_dist.train.experiment import Experiment, open_experiment
from ccts_dist.train.optim import build_optimizer
from ccts_dist.train.steps.step import StepResult, train_step
from ccts_dist.train.zero.engine import Engine

_LINEAR = functional.linear
"""As a new process has it: ZeRO-3 puts its own, which rounds otherwise, in its place for good."""


def forget_engines() -> None:
    """Make room for another engine: Accelerate allows one Accelerator per process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    functional.linear = _LINEAR
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training that is ready for its first step."""

    run: RunConfig
    experiment: Experiment
    engine: Engine
    seconds: float
    """That the engine took to be made, a checkpoint read included."""


@contextmanager
def training(
    config: Path, *, before_engine: Callable[[Experiment], None] = lambda _: None, resume_from: Path | None = None
) -> Iterator[Training]:
    """The training of a run file, in training mode.

    Args:
        before_engine: sees the experiment while the model is whole.
        resume_from: what an engine has saved.
    """
    forget_engines()
    run = read_run(config, [])
    ranks = rank_facts()
    experiment = open_experiment(run, ranks)
    try:
        before_engine(experiment)
        optimizer = build_optimizer(parameter_groups(experiment.model), run.optim)
        began = time.monotonic()
        engine = Engine(
            experiment.model, optimizer, run, ds_config=experiment.ds_config, ranks=ranks, resume_from=resume_from
        )
        engine.train(True)
        yield Training(run=run, experiment=experiment, engine=engine, seconds=time.monotonic() - began)
    finally:
        experiment.close()


def take_steps(config: Path, num_steps: int) -> list[dict[str, Any]]:
    """The figures of the first steps of a run file."""
    with training(config) as ready:
        source = islice(ready.experiment.loader.epoch(0), num_steps)
        objective, seed = ready.experiment.objective, ready.run.seed
        # Without room for a second graph, a step of several micro-batches takes its two rounds.
        rounds: Any = {"graph_samples": 0} if ready.run.batch.forward_rounds == "two" else {}
        return [metrics_of(train_step(ready.engine, batches, objective, seed=seed, **rounds)) for batches in source]


def metrics_of(result: StepResult) -> dict[str, Any]:
    """What two devices are compared by."""
    return {
        "loss": result.loss,
        "ccc_loss": result.ccc_loss,
        "gradient_norm": float("nan") if result.update is None else result.update.gradient_norm,
        "num_distilled": result.num_distilled,
        "rows": result.num_rows,
        "keys": result.key_checksum,
    }
