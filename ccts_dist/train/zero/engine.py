"""The one module that knows Accelerate and DeepSpeed: a model under ZeRO, and the few things done to it.

How DeepSpeed lays out weights and optimizer state is ``train.zero.state``'s part.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccts_dist.batches import Batch
from ccts_dist.config import RunConfig
from ccts_dist.device.arithmetic import exact_float32, tf32
from ccts_dist.distributed import Ranks, agree_or_raise, barrier, run_on_all_ranks
from ccts_dist.errors import OutputError, StopRequested, is_first_rank
from ccts_dist.progress import log
from ccts_dist.ranks import chosen_backend
from ccts_dist.train.memory.out_of_memory import MemoryWords
from ccts_dist.train.resilience.storage_errors import writing
from ccts_dist.train.speed.step_profile import BACKWARD, FORWARD, OPTIMIZER, timed
from ccts_dist.train.steps.regional_compile import compile_layers
from ccts_dist.train.zero.ds_config import launcher_warnings, resolve_ds_config
from ccts_dist.train.zero.extension_build import compile_once
from ccts_dist.train.zero.files import SUFFIX, Snapshot, load_whole, open_stored, write_all
from ccts_dist.train.zero.state import WEIGHTS, ZeroState, undo_first_step

_HARMLESS = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE")
"""Variables of Accelerate that change no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Result of an optimizer step."""

    gradient_norm: float
    """Norm of the global gradient, before clipping."""

    skipped: bool
    """The gradient was not finite, and the weights were left alone."""


class Engine:
    """A model and its optimizer under DeepSpeed, prepared by Accelerate.

    Build the model, weights and all, before this.
    """

    _ema_decay = 0.0

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        run: RunConfig,
        *,
        ds_config: Mapping[str, Any],
        ranks: Ranks,
        resume_from: Path | None = None,
    ) -> None:
        """Every rank must make it.

        Args:
            ds_config: as ``read_ds_config`` gives it.
            resume_from: a folder that ``save`` wrote, on any number of ranks and under any ZeRO stage.

        Raises:
            CheckpointError: on all ranks alike: what is there is not of this model.
            BuildError: on all ranks alike: DeepSpeed cannot compile what it needs.
        """
        # Imported late: it takes seconds and starts loggers, and --check does without.
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        run_on_all_ranks(compile_for_ranks)
        stored = run_on_all_ranks(lambda: open_stored(resume_from)) if resume_from is not None else {}
        if stored:
            # What is frozen, and what ZeRO-3 will spread, is easiest to load while the model is still whole.
            run_on_all_ranks(lambda: load_whole(model, stored[WEIGHTS]))
        if run.train.torch_compile:
            compile_layers(model)
        self._accelerator = _accelerator(run, ds_config)
        # Our loader stays out of prepare(): Accelerate would read it on rank 0 alone and broadcast.
        self._engine: Any
        self._engine, _ = self._accelerator.prepare(model, optimizer)
        # Transformers would build every further model under ZeRO-3's hands: that of the test at the end, for example.
        unset_hf_deepspeed_config()
        undo_first_step(self._engine.optimizer, optimizer)
        _forget_shared_buffer(ranks)
        self.ranks = ranks
        self.num_micro_batches, self._micro_batches_left = 1, 0
        self._memory = MemoryWords(run, ranks)
        self.device: torch.device = self._accelerator.device
        # Under stage 0 in float32 DeepSpeed looks at no norm: see ``_norm_of_plain_gradients``.
        self._is_plain = self._engine.optimizer is optimizer
        self._norm = 0.0
        if self._is_plain:
            # Between DeepSpeed's clipping, which wants gradients, and the step.
            optimizer.register_step_pre_hook(self._refuse_what_is_not_finite)
        self._arithmetic = tf32 if run.train.precision == "tf32" else exact_float32
        self._rounds_to = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
        self._ema_decay = run.train.ema_decay
        self._state = ZeroState(self._engine, optimizer, ranks, self.device)
        if stored:
            run_on_all_ranks(lambda: self._state.restore({kind: tensors.get for kind, tensors in stored.items()}))

    @timed(FORWARD)
    def forward(self, batch: Batch) -> Any:
        """The model's output for a micro-batch that is on ``device``.

        Raises:
            OutOfMemoryError: on this rank alone, as from all that follows here; see ``Watchdog``.
        """
        frames = (batch.frames,) if batch.frames else ()
        training = self._engine.training
        if training:
            self._memory.enter(len(batch.keys), int(batch.audio.shape[1]))
        with (
            self._memory.named("the forward pass" if training else "a forward pass of validation"),
            self._arithmetic() if training else exact_float32(),
        ):
            return self._engine(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens, *frames)

    def try_out(self, batch: Batch) -> None:
        """Take the forward and backward pass of a micro-batch, and change nothing: its gradient is zero.

        Every rank must call it, before the first step. What does not fit is known then, and the allocator has its
        largest blocks.
        """
        buffers = {name: buffer.clone() for name, buffer in self._engine.module.named_buffers()}
        output = self.forward(batch)
        outputs = (output.embedding, output.prediction, output.categories)
        self.backward(torch.stack([0.0 * one.float().sum() for one in outputs if one is not None]).sum())
        with torch.no_grad():
            for name, buffer in self._engine.module.named_buffers():
                buffer.copy_(buffers[name])  # a batch norm's, state
        self._memory.finish()

    def train(self, training: bool) -> None:
        """Training mode on or off."""
        self._engine.train(training)

    def start_step(self, num_micro_batches: int) -> None:
        """Announce that the gradient of the next step comes from so many micro-batches; as many on every rank."""
        self.num_micro_batches = self._micro_batches_left = num_micro_batches

    @timed(BACKWARD)
    def backward(self, surrogate: Tensor) -> None:
        """Add one micro-batch's gradient to the global gradient: the *sum* over all micro-batches and ranks.

        DeepSpeed takes the mean over ranks, which the factor undoes, and none over micro-batches, whose number varies:
        its configuration has one, and the last micro-batch is marked by hand. Forward passes of others may have come
        between a micro-batch's own and this.
        """
        self._engine.set_gradient_accumulation_boundary(self._micro_batches_left == 1)
        # What a forward pass resets, it resets for the backward pass that follows; a second one would find it used.
        reset = getattr(self._engine.optimizer, "clear_backward_seen_flag", None)
        if reset is not None:
            reset()
        with self._memory.named("the backward pass"), self._arithmetic():
            self._engine.backward(surrogate * self.ranks.num_ranks)

    @timed(OPTIMIZER)
    def step(self) -> Update:
        """Count a micro-batch; after the last of a step, reduce the gradient, move the weights, and update their
        average.

        A gradient that is not finite on any rank moves no weights, under every stage and in both precisions.
        """
        skipped_before = self._engine.skipped_steps
        is_last = self._micro_batches_left == 1
        self._micro_batches_left -= 1
        if self._is_plain and is_last:
            self._norm = self._norm_of_plain_gradients()
        with self._memory.named("the optimizer's step"):
            self._engine.step()
        if not is_last:
            return Update(gradient_norm=float("nan"), skipped=False)  # the last norm would be waited for in vain
        self._memory.finish()
        if self._is_plain:
            norm, skipped = self._norm, not isfinite(self._norm)
        else:
            norm, skipped = self._engine.get_global_grad_norm(), self._engine.skipped_steps > skipped_before
        if self._ema_decay and not skipped:
            self._state.update_average(self._ema_decay)
        return Update(gradient_norm=float("nan") if norm is None else float(norm), skipped=skipped)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the exponential moving average of the weights, where ``train.ema_decay`` keeps one.

        ``full_state`` gives the average then, and ``save`` must not be called. Every rank must enter and leave it.
        """
        if self._ema_decay:
            self._state.exchange()
        try:
            yield
        except StopRequested:  # on all ranks, and a checkpoint of the weights follows
            if self._ema_decay:
                self._state.exchange()
            raise
        if self._ema_decay:
            self._state.exchange()

    def _norm_of_plain_gradients(self) -> float:
        """Norm of the reduced gradient, before clipping."""
        gradients = (parameter.grad for parameter in self._engine.module.parameters())
        return float(torch.nn.utils.get_total_norm(gradient for gradient in gradients if gradient is not None))

    def _refuse_what_is_not_finite(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Just before a plain optimizer steps: it leaves alone what has no gradient, state and all."""
        if not isfinite(self._norm):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def full_state(self) -> dict[str, Tensor]:
        """The whole model's weights as it computes with them, in float32 on the CPU: on rank 0, and nothing on others.

        Every rank must call it.
        """
        entries = self._state.kinds()[WEIGHTS]
        state: dict[str, Tensor] = {}
        for name, tensor in self._state.gather(WEIGHTS, entries):
            if tensor is not None:
                # A copy: safetensors refuses names that share memory, as tied weights would.
                rounded = tensor.to(self._rounds_to).float() if tensor.is_floating_point() else tensor
                state[name] = rounded.clone()
        return state

    def save(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Write weights and optimizer state, whole, by the parameters' names; every rank must call it.

        One safetensors file per kind of tensor: weights, with Adam exp_avg, exp_avg_sq and step, and the average of
        the weights if there is one. Rank 0 writes, and
        holds one tensor at a time. What is written depends neither on the ranks nor on the ZeRO stage.

        Returns:
            On rank 0 size and SHA-256 of every file, by name; elsewhere nothing.

        Raises:
            OutputError: on all ranks alike: rank 0 could not write.
        """
        written: dict[str, tuple[int, str]] = {}
        for kind, entries in self._state.kinds().items():
            path = folder / f"{kind}{SUFFIX}"
            tensors = self._state.gather(kind, entries)
            if not self.ranks.is_first:
                for _ in tensors:
                    pass
                agree_or_raise(None)
                continue
            error = None
            try:
                with writing(path):
                    written[path.name] = write_all(path, entries, tensors)
            except OutputError as raised:
                error = raised
                for _ in tensors:  # the others are waiting in their gathers
                    pass
            agree_or_raise(error)
        return written

    def snapshot(self) -> Snapshot:
        """Copy what ``save`` would write, so that it can be written while training goes on; every rank must call it.

        Rank 0 holds all of it in the host's memory, the other ranks nothing.
        """
        kinds = self._state.kinds()
        copies: dict[str, list[tuple[str, Tensor]]] = {}
        for kind, entries in kinds.items():
            gathered = self._state.gather(kind, entries)
            # On a CPU what one rank has whole is the tensor itself, which the next step changes.
            copies[kind] = [(name, tensor.clone()) for name, tensor in gathered if tensor is not None]
        return Snapshot(entries=kinds, tensors=copies)


def compile_for_ranks() -> None:
    """Have what DeepSpeed's ranks talk by where there is no GPU: one small library, compiled at a host's first start.

    Raises:
        BuildError: the compiler is missing or fails.
    """
    deepspeed = _import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    library = accelerator.create_op_builder("ShareMemCommBuilder") if accelerator.device_name() == "cpu" else None
    if library is not None and deepspeed.ops.__compatible_ops__.get(library.NAME, False):
        compile_once(library.NAME, library.load)


def _import_deepspeed() -> Any:
    """DeepSpeed without what it imports and no run uses; that took each start of each rank three seconds.

    MLflow is for its autotuner, which does without; torch's compiler is for Muon, an optimizer that we do not offer,
    whose module it imports whatever the optimizer is.
    """
    sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]  # an ImportError, as where it is not installed
    compile_function = torch.compile
    try:
        import deepspeed

        torch.compile = lambda function: function
        with suppress(ImportError):
            import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        torch.compile = compile_function
        if sys.modules.get("mlflow") is None:
            sys.modules.pop("mlflow", None)
    return deepspeed


def _accelerator(run: RunConfig, ds_config: Mapping[str, Any]) -> Any:
    """Accelerate, over DeepSpeed as the run file and its ds_config want it."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    # What `accelerate launch` was given for devices, precision and steps would go before the run file's word; under its
    # --cpu Accelerate replaces DeepSpeed by plain DDP silently.
    for line in launcher_warnings(os.environ, run.train.precision):
        log(line, visible=is_first_rank())
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in _HARMLESS]:
        del os.environ[name]
    # Accelerate reads these; a launcher has set them, plain `python launch/train.py` has not.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    tree = resolve_ds_config(ds_config, run)
    return Accelerator(
        # The plugin is passed by hand: plain `deepspeed` does not set the variable that `accelerate launch` sets.
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=tree, gradient_accumulation_steps=1),
        # Without this, Accelerate on a machine without a GPU believes in a single process. Several ranks have a group
        # already, and keep it.
        kwargs_handlers=[InitProcessGroupKwargs(backend=chosen_backend())],
        mixed_precision="bf16" if run.train.precision == "bf16" else "no",
    )


def _forget_shared_buffer(ranks: Ranks) -> None:
    """Take the name from the buffer by which DeepSpeed reduces within a host; it lives on as long as it is mapped.

    DeepSpeed never does: each run would leave 69 MB per rank in the host's memory. Every rank must call it.
    """
    barrier()  # all have mapped all
    place = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{place}_{ranks.rank}").unlink(missing_ok=True)
