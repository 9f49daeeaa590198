"""Whole trainings one after the other in ranks that are there already: starting ranks costs more than a small run."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.nn import functional

from ccts_dist.config import read_run
from ccts_dist.distributed import barrier, rank_facts
from ccts_dist.train import run as training
from ccts_dist.train.zero.engine import Engine
from tests.helpers.ranks.record_gradients import RecordingEngine

LINEAR = functional.linear
"""As a new process has it: ZeRO-3 puts its own, which rounds otherwise, in its place for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One start of the program."""

    config: Path
    set: tuple[str, ...] = ()
    resume: str = ""
    continues: Path | None = None
    """A checkpoint of another run: its run folder is copied first, without the checkpoints next to it."""

    record_gradient: bool = False
    """Keep the first step's reduced gradient, as ``record_gradients`` does."""


def run_trainings(jobs: Sequence[Job]) -> None:
    """On one rank: each job to its end, in order; for ``run_on_ranks``."""
    from accelerate.state import AcceleratorState

    for job in jobs:
        AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate allows one Accelerator per process
        functional.linear = LINEAR
        run = read_run(job.config, list(job.set))
        if job.continues is not None and rank_facts().is_first:
            copy_run(job.continues, Path(run.output_dir))
        barrier()
        RecordingEngine.output, RecordingEngine.micro_batches_seen = Path(run.output_dir), 0
        training.Engine = RecordingEngine if job.record_gradient else Engine
        training.train(run, rank_facts(), resume=job.resume)


def copy_run(checkpoint: Path, output: Path) -> None:
    """A run's folder as it would be if it had been killed just after ``checkpoint``."""
    shutil.copytree(checkpoint.parent.parent, output, ignore=shutil.ignore_patterns("step-*", "last"))
    shutil.copytree(checkpoint, output / "checkpoints" / checkpoint.name)
