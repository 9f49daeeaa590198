"""launch/train.py with a fault put into rank 1: ``--fault KIND:FIRST:LAST`` at those steps.

``stuck``          its loader never returns again
``slow``           every step takes two seconds, and in the middle of the first one named it gets a SIGTERM
``nan-gradient``   one gradient becomes NaN, in the backward pass; after each step of the run a line reports the
                   digest of weights and optimizer state on this rank
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccts_dist.batches import StepBatches
from ccts_dist.distributed import rank_facts
from ccts_dist.errors import exit_without_teardown, run_main
from ccts_dist.loader.loader import Loader
from ccts_dist.train import run as training
from ccts_dist.train.zero.engine import Engine, Update

real_epoch = Loader.epoch


def get_stuck_at(stuck_step: int) -> None:
    """Let the loader wait from that step of the run on for something that never comes."""

    def epoch(loader: Loader, epoch: int, start_step: int = 0) -> Iterator[StepBatches]:
        for batches in real_epoch(loader, epoch, start_step):
            if epoch * loader.steps_per_epoch + batches.step + 1 == stuck_step:
                time.sleep(1e6)
            yield batches

    Loader.epoch = epoch


class SlowEngine(Engine):
    """The real engine, which takes its time; rank 1 is asked to stop in the backward pass of one step."""

    asked_in: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.num_steps = 0
        super().__init__(*args, **kwargs)

    def step(self) -> Update:
        self.num_steps += 1
        time.sleep(1)
        if self.num_steps == self.asked_in and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        return super().step()


class PoisonedEngine(Engine):
    """The real engine; poisons a gradient of rank 1, and reports what each step did to weights and optimizer."""

    first: int
    last: int

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.num_steps = self.num_seen = 0
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if rank_facts().rank == 1:
            trained[-1].register_hook(self.poison)
        super().__init__(model, *args, **kwargs)

    def poison(self, gradient: Tensor) -> Tensor:
        is_time = self.first <= self.num_steps + 1 <= self.last
        return torch.full_like(gradient, float("nan")) if is_time else gradient

    def step(self) -> Update:
        before = self.digest()
        update = super().step()
        self.num_seen += 1
        if self.num_seen % self.num_micro_batches == 0:
            self.num_steps += 1
            same = "unchanged" if self.digest() == before else "changed"
            # In one piece: both ranks write to the same pipe.
            line = f"rank {self.ranks.rank} step {self.num_steps} skipped {update.skipped} state {same}\n"
            os.write(1, line.encode())
        return update

    def digest(self) -> str:
        """Of this rank's part of weights and optimizer state, whatever the ZeRO stage."""
        digest = hashlib.sha256()
        for weights, state in self._engine.basic_optimizer.state.items():
            for tensor in (weights, *(value for _, value in sorted(state.items()))):
                digest.update(torch.as_tensor(tensor).detach().float().numpy().tobytes())
        for parameter in self._engine.module.parameters():
            digest.update(getattr(parameter, "ds_tensor", parameter).detach().float().numpy().tobytes())
        return digest.hexdigest()


def faulty_main(argv: list[str] | None = None) -> int:
    """``launch/train.py``'s, with the fault."""
    words = sys.argv[1:] if argv is None else list(argv)
    at = words.index("--fault")
    kind, first, last = words[at + 1].split(":")
    del words[at : at + 2]
    if kind == "slow":
        SlowEngine.asked_in = int(first)
        training.Engine = SlowEngine
    elif kind == "nan-gradient":
        PoisonedEngine.first, PoisonedEngine.last = int(first), int(last)
        training.Engine = PoisonedEngine
    elif rank_facts().rank == 1:
        get_stuck_at(int(first))
    spec = spec_from_file_location("train_command", Path(__file__).parents[4] / "launch" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    command = module_from_spec(spec)
    spec.loader.exec_module(command)
    return command.main(words)


if __name__ == "__main__":
    exit_without_teardown(run_main(faulty_main))
