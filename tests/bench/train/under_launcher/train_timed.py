"""launch/train.py that also notes when each step ended and where its time went; started by ``scaling.py`` and
``options.py``.

Writes ``<output>/times-<rank>.json``: seconds of each step that is neither among the first of the run nor follows a
validation, and the seconds of all these steps that went into each part.

With ``--turns SOCKET`` it reports each step there as soon as it has ended, as a line of JSON (wall and CPU seconds, or
null), and waits for a line before it begins the next.
"""

import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import ccts_dist
from ccts_dist.batches import Batch
from ccts_dist.config import read_run
from ccts_dist.distributed import capture, process_group, rank_facts
from ccts_dist.train import run as training
from ccts_dist.train import trainer as loop
from ccts_dist.train.steps.step import StepResult, train_step
from ccts_dist.train.zero.engine import Engine, Update

COLLECTIVES = ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather", "broadcast")


class Clock:
    """Seconds by step and by part of a step."""

    def __init__(self, warm_up: int, turns: str = "") -> None:
        self.warm_up = warm_up
        self._turns = None
        if turns:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(turns)
            self._turns = connection.makefile("rw")
        self.steps: list[float] = []
        self.cpu: list[float] = []
        self.parts: dict[str, float] = {}
        self._began: tuple[float, float] | None = None
        self._seen = 0

    def step_ended(self) -> None:
        """Count the step since the last one ended."""
        now = (time.perf_counter(), time.process_time())
        self._seen += 1
        took = None
        if self._began is not None and self._seen > self.warm_up:
            took = (now[0] - self._began[0], now[1] - self._began[1])
            self.steps.append(took[0])
            self.cpu.append(took[1])
        if self._seen == self.warm_up:
            self.parts.clear()
        if self._turns is not None:
            print(json.dumps(took), file=self._turns, flush=True)
            self._turns.readline()
            now = (time.perf_counter(), time.process_time())
        self._began = now

    def interrupted(self) -> None:
        """What lies between the last step and the next is no step."""
        self._began = None

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time counted if it is called within a step that is."""

        def call(*args: Any, **options: Any) -> Any:
            counts, began = self._began is not None, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                if counts:
                    self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - began

        return call


def main() -> None:
    """Train the run file's run, timed."""
    options = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    config = read_run(Path(options["--config"]))
    clock = Clock(int(options["--warm-up"]), options.get("--turns", ""))

    class TimedEngine(Engine):
        """The real engine."""

        def forward(self, batch: Batch) -> Any:
            return clock.timed("forward" if self._engine.training else "validation", super().forward)(batch)

        def backward(self, surrogate: torch.Tensor) -> None:
            clock.timed("backward, gradients reduced", super().backward)(surrogate)

        def step(self) -> Update:
            return clock.timed("optimizer, weights gathered", super().step)()

        def train(self, training: bool) -> None:
            clock.interrupted()
            super().train(training)

    def timed_step(*args: Any, **options: Any) -> StepResult:
        result = clock.timed("whole step", train_step)(*args, **options)
        clock.step_ended()
        return result

    reading = clock.timed("reading", capture)
    training.Engine, loop.train_step, loop.attempt = TimedEngine, timed_step, reading
    for name in COLLECTIVES:
        setattr(torch.distributed, name, clock.timed("collectives, with waiting", getattr(torch.distributed, name)))
    ranks = rank_facts()
    with process_group(ranks):
        training.train(config, ranks, resume="")
    reported: Mapping[str, Any] = {
        "steps": clock.steps,
        "cpu": clock.cpu,
        "parts": clock.parts,
        "threads": torch.get_num_threads(),
        "library": ccts_dist.__file__,
    }
    (Path(config.output_dir) / f"times-{ranks.rank}.json").write_text(json.dumps(reported))


if __name__ == "__main__":
    main()
