"""Training by torch alone, on one rank: seconds instead of the time that DeepSpeed takes to come up."""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccts_dist.batches import Batch
from ccts_dist.config import RunConfig, read_run
from ccts_dist.distributed import Ranks
from ccts_dist.train import run as training
from ccts_dist.train.zero.engine import Engine, Update
from tests.helpers.ranks.trainings import copy_run

_FILE = "plain.pt"


class PlainEngine(Engine):
    """The model and the optimizer as they are; the same calls, and checkpoints of its own form."""

    def __init__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        run: RunConfig,
        *,
        ds_config: Mapping[str, Any],
        ranks: Ranks,
        resume_from: Path | None = None,
    ) -> None:
        del run, ds_config
        self.model, self.optimizer = model, optimizer
        self.num_micro_batches, self.ranks, self.device = 1, ranks, torch.device("cpu")
        if resume_from is not None:
            stored = torch.load(resume_from / _FILE, weights_only=True)
            model.load_state_dict(stored["model"])
            optimizer.load_state_dict(stored["optimizer"])

    def forward(self, batch: Batch) -> Any:
        return self.model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)

    def train(self, training: bool) -> None:
        self.model.train(training)

    def start_step(self, num_micro_batches: int) -> None:
        self.num_micro_batches, self._seen = num_micro_batches, 0

    def backward(self, surrogate: Tensor) -> None:
        surrogate.backward()

    def step(self) -> Update:
        self._seen += 1
        norm = 0.0
        if self._seen == self.num_micro_batches:
            gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return Update(gradient_norm=norm, skipped=False)

    def full_state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def snapshot(self) -> "PlainSnapshot":  # type: ignore[override]
        return PlainSnapshot(
            copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        )

    def save(self, folder: Path) -> dict[str, tuple[int, str]]:
        return self.snapshot().write(folder)


class PlainSnapshot:
    """A copy of model and optimizer."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def write(self, folder: Path) -> dict[str, tuple[int, str]]:
        torch.save(self._state, folder / _FILE)
        data = (folder / _FILE).read_bytes()
        return {_FILE: (len(data), hashlib.sha256(data).hexdigest())}


def train_plainly(config: Path, *set_: str, resume: str = "", continues: Path | None = None) -> Path:
    """One start of the program by torch alone, which must end well: ``Watchdog`` ends a process whose training
    has failed.

    Gives the run's folder.

    Args:
        config: the run file.
        set_: as after ``--set``.
        continues: a checkpoint of another run, which the run's folder is made from first.
    """
    run = read_run(config, list(set_))
    if continues is not None:
        copy_run(continues, Path(run.output_dir))
    real, training.Engine = training.Engine, PlainEngine
    try:
        training.train(run, Ranks(), resume=resume)
    finally:
        training.Engine = real
    return Path(run.output_dir)
