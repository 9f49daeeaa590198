"""Out of memory on one rank ends all with one line; allocations fail for real."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ccts_dist.config import read_run
from ccts_dist.distributed import rank_facts
from ccts_dist.train import run as training
from ccts_dist.train.zero.engine import Engine, Update
from tests.helpers.processes.small_runs import build_two_kinds, write_run
from tests.helpers.ranks.processes import end_ranks

_TOO_MANY_BYTES = 1 << 50


def take_too_much(*_: Any) -> None:
    """Ask for a pebibyte, which no machine gives."""
    torch.empty(_TOO_MANY_BYTES, dtype=torch.uint8)


class GreedyEngine(Engine):
    """The real engine; in the second step rank 1 has no memory for one part of it."""

    part = ""

    def __init__(self, model: Any, optimizer: Any, *args: Any, **options: Any) -> None:
        super().__init__(model, optimizer, *args, **options)
        self.num_steps = 0
        first = next(parameter for parameter in self._engine.module.parameters() if parameter.requires_grad)
        if rank_facts().rank == 1:
            self._engine.module.register_forward_pre_hook(lambda *_: self.fail_in("forward"))
            first.register_hook(lambda _: self.fail_in("backward"))
            optimizer.register_step_pre_hook(lambda *_: self.fail_in("step"))

    def fail_in(self, part: str) -> None:
        if self.part == part and self.num_steps == 1:
            take_too_much()

    def step(self) -> Update:
        update = super().step()
        self.num_steps += 1
        return update


def train_greedily(config: Path, part: str) -> None:
    GreedyEngine.part = part
    training.Engine = GreedyEngine
    training.train(read_run(config, []), rank_facts(), resume="")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build_two_kinds(tmp_path_factory.mktemp("memory"), num_train=32).root)


@pytest.mark.parametrize(
    ("part", "stage", "what"),
    [
        ("forward", "zero2", "the forward pass"),
        ("backward", "zero2", "the backward pass"),
        ("step", "zero0", "the optimizer's step"),
        pytest.param("forward", "zero3", "the forward pass", marks=pytest.mark.long),
        pytest.param("backward", "zero1", "the backward pass", marks=pytest.mark.long),
    ],
)
def test_rank_without_memory_names_its_micro_batch_and_ends_all(shards: Path, tmp_path: Path, part, stage, what):
    config = write_run(
        tmp_path / "run.toml", shards, tmp_path / "run",
        batch={"global_batch_size": 8, "micro_batch_size": 4},
        train={"deepspeed": f"ds_configs/{stage}.json", "save_steps": 1, "async_save": False},
    )  # fmt: skip
    codes, words = end_ranks(train_greedily, 2, config, part, place=tmp_path)
    assert codes == [1, 1], words
    (line,) = [line for log in words for line in log.splitlines() if "error: " in line]
    assert line in words[1], "the rank itself states it"
    assert line.startswith(f"error: rank 1: out of memory in {what} of a micro-batch of 4 x 0."), line
    assert f"you tried to allocate {_TOO_MANY_BYTES} bytes" in line
    assert "Lower batch.micro_batch_size (4), or set model.gradient_checkpointing = true. All ranks end. " in line
    assert "The newest complete checkpoint is step-00000001. " in line
    assert "--resume auto" in line
    assert "Traceback" not in "".join(words), words
