"""The one module that knows Accelerate and DeepSpeed: a model under ZeRO, and the few things done to it."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import CheckpointError
from ccts_dist.records import Batch
from ccts_dist.train.ds_config import read_ds_config, resolve_ds_config
from ccts_dist.train.finite import FiniteGradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an optimizer step did."""

    gradient_norm: float
    """Of the global gradient, before clipping."""

    skipped: bool
    """The gradient was not finite, and weights and optimizer were left alone."""


class Engine:
    """A model and its optimizer under DeepSpeed, prepared by Accelerate.

    Build the model, weights and all, before this: with an Accelerator alive, transformers would load weights under
    ZeRO-3's hands.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, run: RunConfig, *, passes: int, ranks: Ranks
    ) -> None:
        # Imported late: they take seconds and start loggers, and --check does without.
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

        # Accelerate reads these; a launcher has set them, plain `python launch/train.py` has not.
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_PORT", "0")
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        tree = resolve_ds_config(read_ds_config(Path(run.train.deepspeed)), run, passes=passes)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        self._accelerator = Accelerator(
            # The plugin is passed by hand: plain `deepspeed` does not set the variable that `accelerate launch` sets.
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=tree, gradient_accumulation_steps=passes),
            # Without this, Accelerate on a machine without a GPU believes in a single process.
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
            mixed_precision="bf16" if run.train.precision == "bf16" else "no",
        )
        # Our loader stays out of prepare(): Accelerate would read it on rank 0 alone and broadcast.
        self._engine: Any
        self._engine, self._optimizer = self._accelerator.prepare(model, optimizer)
        stage = tree["zero_optimization"]["stage"]
        self._finite = FiniteGradients(optimizer) if stage == 0 and run.train.precision == "fp32" else None
        self.ranks = ranks
        self.passes = passes
        self.device: torch.device = self._accelerator.device

    def forward(self, batch: Batch) -> Any:
        """The model's output for a micro-batch that is on ``device``."""
        return self._engine(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)

    def train(self, training: bool) -> None:
        """Training mode on or off."""
        self._engine.train(training)

    def backward(self, surrogate: Tensor) -> None:
        """Add one pass's gradient to the global gradient: the *sum* over all passes and ranks.

        DeepSpeed takes means over ranks and over passes; the factor undoes both.
        """
        self._engine.backward(surrogate * (self.ranks.num_ranks * self.passes))

    def step(self) -> Update:
        """Count a pass; after the last of a step, reduce the gradient and move the weights."""
        skipped_before = self._num_skipped()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return Update(
            gradient_norm=float("nan") if norm is None else float(norm),
            skipped=self._num_skipped() > skipped_before,
        )

    def _num_skipped(self) -> int:
        return self._engine.skipped_steps + (self._finite.num_refused if self._finite else 0)

    def full_gradient(self, name: str) -> Tensor:
        """The global gradient of one parameter after the last backward and before ``step``; on every rank."""
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(dict(self._engine.module.named_parameters())[name])
        assert gradient is not None, f"{name} has no gradient"
        return gradient

    def full_state(self) -> dict[str, Tensor]:
        """The whole model's weights in float32 on the CPU; every rank must call it, and rank 0's answer is complete."""
        state: Any = self._accelerator.get_state_dict(self._engine)
        return {name: value.detach().float().cpu().contiguous() for name, value in (state or {}).items()}

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state, each rank its part; every rank must call it, barriers are the caller's."""
        self._engine.save_checkpoint(str(folder), tag="zero", save_latest=False)

    def load(self, folder: Path) -> None:
        """Take up what ``save`` wrote on as many ranks.

        Raises:
            CheckpointError: DeepSpeed finds nothing to load there.
        """
        loaded, _ = self._engine.load_checkpoint(str(folder), tag="zero")
        if loaded is None:
            raise CheckpointError(f"{folder}: DeepSpeed finds no checkpoint of {self.ranks.num_ranks} ranks there.")
