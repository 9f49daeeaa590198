"""A run file for the cluster's tests, and how near two runs of it are."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.cluster.hosts import PATIENCE_S, Started
from tests.helpers.processes.small_runs import read_history, without_times, write_run

STEPS = 60
TIMEOUT_S = 30.0
"""After which a rank gives its peers up, where a test is about that."""

CACHE = "/dev/shm/shards"
"""Where a host keeps shards of a store: a place of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run file and its output."""

    config: Path
    output: Path

    @property
    def args(self) -> tuple[str, ...]:
        """For train.py."""
        return ("--config", str(self.config), "--resume", "auto")

    @property
    def steps_done(self) -> int:
        """Whole lines of its history."""
        history = self.output / "history.jsonl"
        return history.read_bytes().count(b"\n") if history.exists() else 0

    def wait_for_step(self, step: int, started: Sequence[Started], timeout_s: float = PATIENCE_S) -> None:
        """Until the history has so many steps; fails when one of what should write it ends before."""
        deadline = time.monotonic() + timeout_s
        while self.steps_done < step:
            words = "\n".join(one.words for one in started)
            assert all(one.is_running for one in started), f"training has ended by itself\n{words[-8000:]}"
            assert time.monotonic() < deadline, f"training has not come to step {step}\n{words[-8000:]}"
            time.sleep(0.02)


def write_run_file(material: Path, name: str, *, partitions: int, shards: str = "", timeout_s: float = 300.0) -> Run:
    """A distilled run: epochs of four steps, checkpoints within and at the end of each."""
    output = material / "runs" / name
    config = write_run(
        material / f"{name}.toml", Path("shards"), output,
        data={
            "shards": shards or str(material / "shards"), "shard_cache": CACHE,
            "teacher_cache": str(material / "cache"),
            "num_partitions": partitions,
        },
        distill={"embedding_weight": 1.0, "prediction_weight": 0.5},
        train={"epochs": 100, "max_steps": STEPS, "save_steps": 3, "comm_timeout_s": timeout_s},
    )  # fmt: skip
    return Run(config=config, output=output)


def largest_difference(one: Run, other: Run) -> float:
    """Of losses and final weights; the batches must be the same."""
    steps = [read_history(run.output) for run in (one, other)]
    assert len(steps[0]) == STEPS
    assert [step["keys"] for step in steps[0]] == [step["keys"] for step in steps[1]]
    losses = np.array([[step["train/loss"] for step in history] for history in steps])
    assert losses[0, 0] != losses[0, -1], "nothing was learnt, so nothing was compared"
    weights = [load_file(run.output / "last" / "model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    off = max(float(np.abs(weights[0][name] - weights[1][name]).max()) for name in weights[0])
    return max(off, float(np.abs(losses[0] - losses[1]).max()))


def assert_same(one: Run, other: Run) -> None:
    """Histories and final weights are equal to the last bit."""
    steps = [without_times(read_history(run.output)) for run in (one, other)]
    assert len(steps[0]) == STEPS
    assert steps[0] == steps[1]
    weights = [(run.output / "last" / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
