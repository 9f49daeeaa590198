"""Floating-point operations of a model, counted on fake tensors as torch's ``FlopCounterMode`` counts them.

A multiplication and an addition are two operations; only matrix products and convolutions count, and of recurrent
layers what they are made of. These are *model* FLOPs: each operation of a forward and a backward pass once. Layers that
are recomputed and the first round of forward passes without gradient add nothing to them, so that a share of a device's
peak (MFU, Chowdhery et al. 2022, "PaLM", appendix B) falls where work is repeated.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count
from torch.utils.hooks import RemovableHandle

from ccts_dist.batches import FrameBatch
from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig, num_poolings
from ccts_dist.config.model_rules import EXTRA_SPEECH, cached_branches
from ccts_dist.model.emotion import EmotionModel, EncoderConfigs
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.train.experiment import Experiment
from ccts_dist.train.memory.activations import BatchShape, fake_inputs, rehearse, shape_model

_LONGEST = 10 * SAMPLE_RATE_HZ
"""Longest of the rows that the polynomial goes through; it holds beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFlops:
    """Operations of one row as a polynomial of its samples and its tokens: attention is what makes it a square."""

    base: float
    per_sample: float
    per_squared_sample: float
    per_token: float = 0.0
    per_squared_token: float = 0.0

    def of(self, rows: float, samples: float, squares: float, tokens: float = 0.0, token_squares: float = 0.0) -> float:
        """Operations of ``rows`` rows whose lengths, and squares of lengths, add up to these.

        Padding counts as much as audio where padded lengths are given, and not at all where real ones are.
        """
        return (
            self.base * rows
            + self.per_sample * samples
            + self.per_squared_sample * squares
            + self.per_token * tokens
            + self.per_squared_token * token_squares
        )

    def of_row(self, samples: int, tokens: int = 0) -> float:
        """Operations of one row."""
        return self.of(1.0, float(samples), float(samples**2), float(tokens), float(tokens**2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """A model's operations, and the kernels that a pass starts."""

    forward: RowFlops
    training: RowFlops
    """Forward and backward pass."""

    forward_kernels: int
    """Operators of a forward pass that compute, whatever its size: each costs a host the time to start it."""

    training_kernels: int


def count_flops(
    config: ModelConfig,
    encoders: EncoderConfigs,
    *,
    samples: int,
    tokens: int = 0,
    cached: Collection[str] = (),
    recomputation: bool = False,
) -> ModelFlops | None:
    """A model's operations, fitted through rows of several lengths.

    Args:
        config: what the model is like.
        encoders: the shapes of its encoders.
        samples: of the longest row that shall be asked for.
        tokens: of the longest transcript; 0 without a text branch.
        cached: branches whose frames are read instead of computed.
        recomputation: count the layers that gradient checkpointing runs once more, if the model has it.

    Returns:
        None for an encoder that cannot be run on shapes alone, because it looks at numbers to decide what to do.
    """
    config = config if recomputation else replace(config, gradient_checkpointing=False)
    shapes = [BatchShape(rows=1, samples=max(400, samples // part), tokens=tokens) for part in (1, 2, 4)]
    if tokens:
        shapes += [replace(shapes[0], tokens=max(1, tokens // part)) for part in (2, 4)]
    counts = []
    with shape_model(config, encoders, torch.float32, training=True, on_gpu=True) as (model, fake_mode):
        for shape in shapes:
            rehearse(model, shape)
            with fake_mode:
                try:
                    counts.append(_count(model, config, shape, cached))
                except RuntimeError:  # a fake tensor that was asked for a number, or an unknown operator
                    return None
    forward, training = (_fitted(shapes, [count[kind] for count in counts]) for kind in (0, 1))
    _, _, forward_kernels, training_kernels = counts[0]
    return ModelFlops(
        forward=forward, training=training, forward_kernels=forward_kernels, training_kernels=training_kernels
    )


def flops_of(experiment: Experiment, *, recomputation: bool = False) -> ModelFlops | None:
    """The operations of an experiment's model; to be asked before an engine has taken it apart."""
    run = experiment.run
    return count_flops(
        run.model,
        experiment.model.encoder_configs,
        samples=_LONGEST,
        tokens=0 if run.model.text is None else run.model.text.max_tokens,
        cached=cached_branches(run.model) if run.data.feature_cache else (),
        recomputation=recomputation,
    )


def _count(
    model: EmotionModel, config: ModelConfig, shape: BatchShape, cached: Collection[str]
) -> tuple[float, float, int, int]:
    """Operations of a forward pass and of forward and backward pass, then the kernels of the same."""
    inputs = fake_inputs(model, shape)
    frames: dict[str, FrameBatch] = {}
    if cached:
        with torch.no_grad(), _pooled_shapes(model) as shapes:
            model(*inputs)
        frames = {name: _fake_frames(shapes[name]) for name in cached}
    counter, kernels = FlopCounterMode(display=False, custom_mapping=_FORMULAS), _Kernels()
    with _pooled_shapes(model) as pooled, counter, kernels:
        output = model(*inputs, frames)
        forward, forward_kernels = counter.get_total_flops(), kernels.count
        (output.prediction.sum() + output.embedding.sum()).backward()
        both = counter.get_total_flops()
    for parameter in model.parameters():
        parameter.grad = None
    recurrent = _recurrent(config, pooled)
    return forward + recurrent, both + 3 * recurrent, forward_kernels, kernels.count


def _fake_frames(shape: tuple[int, ...]) -> FrameBatch:
    return FrameBatch(frames=torch.zeros(shape), num_frames=torch.full(shape[:1], shape[1]))


@contextmanager
def _pooled_shapes(model: EmotionModel) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes of what each branch pools, by its name in the model, once the model has been run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def count_of(name: str) -> RemovableHandle:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(given[0].shape)

        return model.get_submodule(f"{name}.pooling").register_forward_pre_hook(note)

    hooks = [count_of(name) for name in _branches(model.config)]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()


def _branches(config: ModelConfig) -> dict[str, SpeechConfig | TextConfig]:
    """The branches by the names that their modules have in the model."""
    branches = {"speech": config.speech, "text": config.text}
    branches |= {f"{EXTRA_SPEECH}.{number}": branch for number, branch in enumerate(config.extra_speech)}
    return {name: branch for name, branch in branches.items() if branch is not None}


def _recurrent(config: ModelConfig, pooled: dict[str, tuple[int, ...]]) -> float:
    """Operations of the GRUs' forward pass: three gates, each a product with the input and one with the state.

    The traced model pools by the mean in their place; the embedding's layer is counted as for that.
    """
    total = 0.0
    for name, branch in _branches(config).items():
        rows, frames, features = pooled[name]
        if branch.pooling == "gru":
            sizes = [features, *[branch.gru_hidden] * (branch.gru_layers - 1)]
            total += sum(2 * 3 * branch.gru_hidden * (size + branch.gru_hidden) * frames * rows for size in sizes)
    return total * num_poolings(config)


def _fitted(shapes: Sequence[BatchShape], counts: Sequence[float]) -> RowFlops:
    """The polynomial through these counts."""
    longest, most = shapes[0].samples, max(1, shapes[0].tokens)
    unit = np.array([1, longest, longest**2, most, most**2], dtype=np.float64)
    terms = np.array([[1, s.samples, s.samples**2, s.tokens, s.tokens**2] for s in shapes]) / unit
    if not shapes[0].tokens:
        terms = terms[:, :3]
    found = np.linalg.lstsq(terms, np.array(counts), rcond=None)[0]
    base, *others = (found / unit[: len(found)]).tolist()
    names = ("per_sample", "per_squared_sample", "per_token", "per_squared_token")
    return RowFlops(base=base, **dict(zip(names, others, strict=False)))


class _Kernels(TorchDispatchMode):
    """Counts operators that are more than another view of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))


def _convolution_backward(
    grad_output: Any, audio: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: Sequence[bool], out_shape: Any = None,
) -> int:  # fmt: skip
    """Operations of the gradients of the input, and of the weight: each as many as of the output.

    Torch's own formula (2.11) multiplies those of the weight by the number of groups: HuBERT's position convolution has
    16.
    """
    return (output_mask[0] + output_mask[1]) * conv_flop_count(audio, weight, grad_output, transposed=transposed)


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, out_shape: Any = None, **___: Any) -> int:
    # The scores that the kernel computes once more are no model FLOPs.
    return 2 * sdpa_flop_count(query, key, value)


_FORMULAS = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    # Torch counts attention kernels of GPUs alone; fake tensors take the one of the CPU.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
