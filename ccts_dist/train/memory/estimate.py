"""Memory of a rank, by parts, from numbers alone: parameters, ZeRO stage, ranks, activations.

The parts are those that DeepSpeed 0.19 (``stage_1_and_2.py``, ``stage3.py``) and our own loop allocate, each with the
phases of a training in which it is there. The peak is the phase whose parts weigh most: with much to train the
optimizer step or the saving of a model, with long utterances the backward pass.

Without a GPU all parts lie in the host's memory, and the peak can be compared with what the kernel counted
(``ccts_dist.train.memory.peak``).
"""

from dataclasses import replace

from ccts_dist.config import OptimConfig
from ccts_dist.train.memory.parts import PHASES, Activations, Estimate, Part, Phase
from ccts_dist.train.zero.partitioning import ModelSizes, ZeroPartitioning

_START, _BACKWARD, _STEP, _SAVING, _SCORING = PHASES
_TRAINING = PHASES[1:]
_WRITING = PHASES[1:4]

HOST_PROCESS_BYTES = 850_000_000
"""Resident memory of a rank that is no tensor of a model, the least that was measured: Python, torch, transformers,
DeepSpeed, gloo and their libraries. A training of three steps, foreseen at 0.98 GB, took 1.03."""

GPU_CONTEXT_BYTES = 500_000_000
"""A CUDA context with the kernels that it loads. A rule of thumb, as is the next: they belong to driver and library."""

NCCL_BYTES = 2_000_000_000
"""Buffers of two communicators, the trainer's and DeepSpeed's, among the GPUs of a host that NVLink joins."""

_DDP_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at a time at stage 0 (engine.py, MEMORY_OPT_ALLREDUCE_SIZE)."""


def estimate_memory(
    sizes: ModelSizes,
    partitioning: ZeroPartitioning,
    optim: OptimConfig,
    *,
    precision: str,
    num_ranks: int,
    num_micro_batches: int,
    activations: Activations,
    on_gpu: bool,
    tests: bool = True,
    async_save: bool = False,
    keeps_average: bool = False,
) -> Estimate:
    """A rank's parts; the rank that needs most, which is the first, since it saves models.

    Args:
        precision: "fp32" or "bf16".
        num_micro_batches: forward passes per step and rank.
        on_gpu: where the model is; the parts of the host are then distinguished.
        tests: whether the best model is scored on test splits at the end; it is read in any case.
        async_save: whether checkpoints are written from a copy.
        keeps_average: whether there is a moving average of the trained weights.
    """
    numbers = _Numbers(sizes, partitioning, optim, precision, num_ranks, num_micro_batches, on_gpu)
    parts = [
        *_weights(numbers),
        *_gradients(numbers),
        *_optimizer(numbers),
        *_buckets(numbers),
        Part(what="activations", size_bytes=activations.training, why=activations.shape, phases=(_BACKWARD,)),
        *_files(numbers, activations.scoring if tests else None),
        *([_average(numbers)] if keeps_average else []),
        *([_checkpoint_copy(numbers, keeps_average=keeps_average)] if async_save else []),
    ]
    if on_gpu:
        parts += _of_the_driver(num_ranks)
    parts.append(Part(what="process", size_bytes=HOST_PROCESS_BYTES, why="programs and libraries", on_host=on_gpu))
    return Estimate(parts=tuple(parts), on_gpu=on_gpu)


def _of_the_driver(num_ranks: int) -> list[Part]:
    """Memory that driver and libraries take of a GPU beside torch's allocator."""
    nccl = NCCL_BYTES if num_ranks > 1 else 0
    return [
        Part(what="CUDA context", size_bytes=GPU_CONTEXT_BYTES, why="rule of thumb", fragments=False),
        Part(what="NCCL", size_bytes=nccl, why="two communicators, rule of thumb", fragments=False),
    ]


class _Numbers:
    """Numbers that the parts are made of. Sizes are in elements, ``low`` and ``wide`` in bytes per element."""

    def __init__(
        self,
        sizes: ModelSizes,
        partitioning: ZeroPartitioning,
        optim: OptimConfig,
        precision: str,
        num_ranks: int,
        num_micro_batches: int,
        on_gpu: bool,
    ) -> None:
        self.sizes, self.partitioning, self.optim = sizes, partitioning, optim
        self.precision, self.num_ranks, self.num_micro_batches, self.on_gpu = (
            precision,
            num_ranks,
            num_micro_batches,
            on_gpu,
        )
        self.low = 2 if precision == "bf16" else 4
        self.parameters, self.trained = sizes.parameters, sizes.trained
        self.own = self.share(self.trained)
        """Trained parameters whose optimizer state is this rank's."""

        self.stage = partitioning.stage
        self.offloads = partitioning.offload_optimizer and partitioning.stage > 0

    def share(self, numel: int) -> int:
        """One rank's part of so many elements."""
        return -(-numel // self.num_ranks)

    @property
    def divided(self) -> str:
        """How a part is spread, for people."""
        return f"divided by {self.num_ranks}" if self.num_ranks > 1 else "one rank has all"


def _weights(n: _Numbers) -> list[Part]:
    if n.stage < 3:
        return [Part(what=f"weights, {n.precision}", size_bytes=n.low * n.parameters, why="whole on each rank")]
    small = n.sizes.below(n.partitioning.whole_below)
    live = min(n.parameters - small, n.partitioning.most_live)
    return [
        Part(
            what=f"weights, {n.precision}",
            size_bytes=n.low * n.share(n.parameters),
            why=n.divided,
            phases=_TRAINING,
            on_host=n.on_gpu and n.partitioning.offload_parameters,
        ),
        Part(what="small weights", size_bytes=n.low * small, why="whole on each rank", phases=_TRAINING),
        Part(
            what="weights gathered for use",
            size_bytes=n.low * live,
            why=f"at most {n.partitioning.most_live:,} (max_live_parameters, max_reuse_distance)",
            # Without a GPU the C library's allocator keeps what it has had back from tensors of less than 32 MB.
            phases=(_BACKWARD,) if n.on_gpu else _TRAINING,
        ),
    ]


def _gradients(n: _Numbers) -> list[Part]:
    parts: list[tuple[int, str, tuple[Phase, ...]]]
    if n.stage == 0:
        parts = [(n.low * n.trained, "whole on each rank", (_BACKWARD, _STEP))]
    elif n.stage == 1:
        parts = [(n.low * n.trained, "whole on each rank", (_BACKWARD,)), (n.low * n.own, n.divided, (_BACKWARD,))]
    elif n.stage == 2:
        # With several micro-batches DeepSpeed holds the sum so far beside the micro-batch that is being reduced.
        copies = 2 if n.num_micro_batches > 1 else 1
        words = f"{n.divided}, sum and last micro-batch" if copies == 2 else n.divided
        parts = [(copies * n.low * n.own, words, (_BACKWARD,))]
    else:
        parts = [(n.low * n.own, n.divided, _TRAINING)]
    return [
        Part(what="gradients", size_bytes=size, why=why, phases=phases, on_host=n.on_gpu and n.offloads and n.stage > 1)
        for size, why, phases in parts
    ]


def _optimizer(n: _Numbers) -> list[Part]:
    """Master weights, moments, and what an update needs for a moment."""
    on_host = n.on_gpu and n.offloads
    spread = n.divided if n.stage else "whole on each rank"
    own = n.own if n.stage else n.trained
    # At stage 0 in fp32 the optimizer moves the weights themselves.
    master = 0 if n.stage == 0 and n.precision == "fp32" else 4 * own
    moments = 0 if n.optim.name == "sgd" else 8 * own
    parts = [
        Part(what="master weights, fp32", size_bytes=master, why=spread, phases=_TRAINING, on_host=on_host),
        Part(
            what=f"optimizer state ({n.optim.name})", size_bytes=moments, why=spread, phases=_TRAINING, on_host=on_host
        ),
    ]
    if n.offloads:
        parts.append(
            Part(what="gradients for it, fp32", size_bytes=4 * own, why=spread, phases=_TRAINING, on_host=on_host)
        )
    update = _update_bytes(n, own)
    parts.append(Part(what="update", size_bytes=update, why="temporaries", phases=(_STEP,), on_host=on_host))
    return parts


def _update_bytes(n: _Numbers, own: int) -> int:
    """Temporaries of an optimizer step: the flat gradient in fp32, and those of torch's Adam.

    Adam on the CPU holds the root of the second moment and its corrected copy; where there is a GPU it is fused, and
    holds nothing.
    """
    is_fused = n.on_gpu and n.optim.name != "sgd"
    temporaries = 0 if is_fused or n.optim.name == "sgd" else 2
    if n.optim.weight_decay and n.optim.name != "adamw" and not is_fused:
        temporaries += 1  # the gradient with the decay in it
    if n.stage == 0:
        if n.precision == "bf16":
            return 4 * own + 4 * temporaries * (own if n.on_gpu else max(n.sizes.trained_numels, default=0))
        return 4 * temporaries * (own if n.on_gpu else max(n.sizes.trained_numels, default=0))
    if n.stage == 3:
        own = min(own, n.partitioning.sub_group)
    if n.offloads:
        return 4 * temporaries * own  # its gradients are there all the time
    held = 0 if n.stage == 3 else n.low  # stage 3 has its gradients anyway
    flattening = held + n.low + (0 if n.low == 4 else 4)
    return max(flattening, 4 + 4 * temporaries) * own


def _buckets(n: _Numbers) -> list[Part]:
    if n.stage == 0:
        size = n.low * min(n.trained, _DDP_BUCKET) if n.num_ranks > 1 else 0
        return [Part(what="gradients being reduced", size_bytes=size, why="a flat copy", phases=(_BACKWARD,))]
    bucket = n.partitioning.reduce_bucket
    # A GPU's allocator gives all of a bucket; on the host only what was written to is there.
    size = bucket if n.on_gpu else min(bucket, n.trained)
    copies = 2 if n.partitioning.overlap and n.stage < 3 else 1
    parts = [
        Part(
            what="gradient buckets",
            size_bytes=n.low * size * copies,
            why=f"{copies} of {bucket:,} (reduce_bucket_size)",
            phases=_TRAINING if n.stage == 3 else (_BACKWARD,),
        ),
        Part(
            what="gradients being reduced",
            size_bytes=n.low * min(bucket, n.trained),
            why="a flat copy of a bucket",
            phases=(_BACKWARD,),
        ),
    ]
    if n.stage == 3:
        fetched = min(n.partitioning.prefetch_bucket, n.parameters)
        parts.append(
            Part(
                what="weights being gathered",
                size_bytes=n.low * fetched,
                why=f"{n.partitioning.prefetch_bucket:,} (prefetch_bucket_size)",
                phases=(_BACKWARD,),
            )
        )
    return parts


def _average(n: _Numbers) -> Part:
    size, why = (4 * n.own, n.divided) if n.stage else (4 * n.trained, "whole on each rank")
    return Part(
        what="average of weights, fp32", size_bytes=size, why=why, phases=_TRAINING, on_host=n.on_gpu and n.offloads
    )


def _checkpoint_copy(n: _Numbers, *, keeps_average: bool) -> Part:
    """The copy from which rank 0 writes a checkpoint while training goes on."""
    moments = 0 if n.optim.name == "sgd" else 8 * n.trained
    size = 4 * n.parameters + moments + (4 * n.trained if keeps_average else 0)
    return Part(what="copy for a checkpoint", size_bytes=size, why="async_save", phases=_WRITING, on_host=n.on_gpu)


def _files(n: _Numbers, scoring: int | None) -> list[Part]:
    """Whole models beside the engine: read at the start, written, and read once more for the last scores."""
    model = 4 * n.parameters
    parts = [
        # Read twice, to compare what was loaded.
        Part(what="encoders' files", size_bytes=4 * n.sizes.mapped, why="mapped", phases=(_START,), on_host=n.on_gpu),
        Part(
            what="all weights", size_bytes=model, why="gathered on one rank, fp32", phases=(_SAVING,), on_host=n.on_gpu
        ),
    ]
    as_read = Part(what="weights, fp32", size_bytes=model, why="whole, as read", phases=(_START,), on_host=n.on_gpu)
    if n.on_gpu:
        parts.append(as_read)
        # Laid flat at stages 1 and 2, whole before they are divided at stage 3.
        moved = {0: 0, 1: n.trained, 2: n.trained, 3: n.parameters}[n.stage]
        parts.append(replace(as_read, what="weights being laid out", size_bytes=n.low * moved, why="", on_host=False))
        parts.append(
            Part(what="the best model, its file", size_bytes=2 * model, why="fp32", phases=(_SCORING,), on_host=True)
        )
        if scoring is not None:
            parts.append(Part(what="the best model", size_bytes=model, why="fp32", phases=(_SCORING,)))
            parts.append(Part(what="its activations", size_bytes=scoring, why="no gradient", phases=(_SCORING,)))
    else:
        parts.append(Part(what="the best model", size_bytes=model, why="fp32", phases=(_SCORING,)))
        beside = max(model, scoring or 0)
        parts.append(Part(what="its file, then activations", size_bytes=beside, why="mapped", phases=(_SCORING,)))
        # Weights that nobody moves or casts stay in the file, and keep all of it mapped. Mapped pages count as resident
        # until the kernel needs them for something else.
        frozen = n.parameters - n.trained
        if n.stage < 3 and n.precision == "fp32" and frozen:
            retained = 4 * max(0, n.sizes.mapped - frozen)
            parts.append(Part(what="encoders' files", size_bytes=retained, why="still mapped", phases=_TRAINING))
        # Cast one by one, so that both precisions are never there at once.
        parts.append(as_read if n.stage == 3 else replace(as_read, size_bytes=model - n.low * n.parameters))
    return parts
