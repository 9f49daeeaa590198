"""How much memory a forward and backward pass needs beside the weights, found without weights and without computing.

The real model is built a second time of fake tensors, which have shapes and no memory, and a whole pass is run on them.
Every tensor that comes into being is counted while it lives. So this holds for any encoder that transformers gives,
with and without gradient checkpointing. What a kernel takes for itself while it runs is not seen.
"""

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig, num_poolings
from ccts_dist.model.emotion import EmotionModel, EncoderConfigs, rebuild_model, with_adapters
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch

_Branch = TypeVar("_Branch", SpeechConfig, TextConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """A padded micro-batch."""

    rows: int
    samples: int
    """Length of the longest row."""

    tokens: int = 0
    """Length of the longest transcript; 0 without a text branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassMemory:
    """Bytes of the activations of one micro-batch."""

    retained: int
    """Those of the graph that waits for its backward pass; next to nothing without gradient."""

    peak: int
    """Most of them alive at a time, forward and backward."""


def trace_pass(
    config: ModelConfig, encoders: EncoderConfigs, shape: BatchShape, *, precision: str, training: bool, on_gpu: bool
) -> PassMemory | None:
    """Memory of a pass over such a batch, weights and their gradients not counted.

    Args:
        config: what the model is like, gradient checkpointing included.
        encoders: the shapes of its encoders.
        precision: "fp32" or "bf16": of weights and activations.
        training: with gradients, and a backward pass; else a forward pass alone, in evaluation mode.
        on_gpu: attention never keeps its weights; on a CPU it does where there is dropout on them.

    Returns:
        None for an encoder that cannot be run on shapes alone, because it looks at numbers to decide what to do.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with shape_model(config, encoders, dtype, training=training, on_gpu=on_gpu) as (model, fake_mode):
        rehearse(model, shape)
        with fake_mode:
            try:
                traced, nums_frames = _run(model, shape, training=training)
            except RuntimeError:  # what a fake tensor raises when asked for a number, or on meeting an unknown operator
                return None
    # The GRU comes last in the forward pass, and its backward pass is over before the encoder's begins.
    retained = traced.retained + _gru_bytes(config, nums_frames, shape.rows, dtype, training=training)
    return PassMemory(retained=retained, peak=max(traced.peak, retained))


def trace_peak(
    config: ModelConfig, encoders: EncoderConfigs, shape: BatchShape, *, precision: str, training: bool, on_gpu: bool
) -> int | None:
    """The ``peak`` of ``trace_pass`` alone."""
    traced = trace_pass(config, encoders, shape, precision=precision, training=training, on_gpu=on_gpu)
    return None if traced is None else traced.peak


@contextmanager
def shape_model(
    config: ModelConfig, encoders: EncoderConfigs, dtype: torch.dtype, *, training: bool, on_gpu: bool
) -> Iterator[tuple[EmotionModel, FakeTensorMode]]:
    """The model of fake tensors, without GRU and SpecAugment, and the mode to run it in, once it is rehearsed."""
    fake_mode = FakeTensorMode()
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = rebuild_model(_without_gru(config), _simplified(encoders, on_gpu=on_gpu))
            with_adapters(model).train(training)
        with fake_mode:
            _make_fake(model, dtype)
        yield model, fake_mode


def rehearse(model: EmotionModel, shape: BatchShape) -> None:
    """Prepare branches with a feature extractor for a batch of that shape; to be called outside of the fake mode."""
    for branch in model.modules():
        if isinstance(branch, ExtractedBranch):
            branch.rehearse(shape.rows, shape.samples)


def fake_inputs(model: EmotionModel, shape: BatchShape) -> tuple[Tensor | None, ...]:
    """Audio, numbers of samples, tokens and numbers of tokens of a batch without padding; within the fake mode."""
    audio = torch.zeros(shape.rows, shape.samples)
    num_samples = torch.full((shape.rows,), shape.samples, dtype=torch.int64)
    if model.text is None:
        return audio, num_samples, None, None
    tokens = torch.zeros(shape.rows, shape.tokens, dtype=torch.int64)
    return audio, num_samples, tokens, torch.full((shape.rows,), shape.tokens, dtype=torch.int64)


def _without_gru(config: ModelConfig) -> ModelConfig:
    """A GRU's steps are many small operators, which would take most of the time for little of the memory."""
    return replace(
        config,
        speech=None if config.speech is None else _without_own_gru(config.speech),
        text=None if config.text is None else _without_own_gru(config.text),
        extra_speech=tuple(_without_own_gru(branch) for branch in config.extra_speech),
    )


def _without_own_gru(branch: _Branch) -> _Branch:
    return replace(branch, pooling="mean") if branch.pooling == "gru" else branch


def _gru_bytes(
    config: ModelConfig, nums_frames: Sequence[int], num_rows: int, dtype: torch.dtype, *, training: bool
) -> int:
    """Bytes that GRUs keep: per unit and step two times three gates before and three after their activation, the
    difference that the update gate weighs, the output, and its copy in the sequence. Without gradient less than half.

    Args:
        nums_frames: that each branch pools; further speech branches stand before the text branch.
    """
    numbers = (12 if training else 5) * num_poolings(config)
    branches = [branch for branch in (config.speech, *config.extra_speech, config.text) if branch is not None]
    return sum(
        numbers * branch.gru_hidden * branch.gru_layers * num_rows * num_frames * dtype.itemsize
        for branch, num_frames in zip(branches, nums_frames, strict=True)
        if branch.pooling == "gru"
    )


def _make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Take a model from the meta device to where kernels are chosen as on a real device; call it in a fake mode."""
    fakes: dict[nn.Parameter, nn.Parameter] = {}  # a parameter may have two names
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in fakes:
                tensor = torch.empty(parameter.shape, dtype=dtype, device="cpu")
                fakes[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            setattr(module, name, fakes[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def _simplified(encoders: EncoderConfigs, *, on_gpu: bool) -> EncoderConfigs:
    """Without SpecAugment, which looks at numbers and costs next to nothing.

    Fused attention on a GPU draws its dropout again in the backward pass; torch's on a CPU knows no dropout, and falls
    back to plain attention, which keeps a number for each pair of frames.
    """
    speech, text, extra = copy.deepcopy((encoders.speech, encoders.text, encoders.extra_speech))
    for config in (speech, *extra):
        if config is not None:
            config.apply_spec_augment = False
    for config in (speech, text, *extra) if on_gpu else ():
        for name in ("attention_dropout", "attention_probs_dropout_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    return replace(encoders, speech=speech, text=text, extra_speech=extra)


def _run(model: EmotionModel, shape: BatchShape, *, training: bool) -> tuple[PassMemory, list[int]]:
    """Memory of a pass without what GRUs need, and the frames that each branch pools."""
    nums_frames: list[int] = []
    for branch in (model.speech, *model.extra_speech, model.text):
        if branch is not None:
            pooling = cast(nn.Module, branch.pooling)
            pooling.register_forward_pre_hook(lambda _, inputs: nums_frames.append(inputs[0].shape[1]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    with _LiveBytes(model) as live, torch.set_grad_enabled(training):
        inputs = fake_inputs(model, shape)  # a step holds them to its end
        output = model(*inputs)
        retained = live.now
        if training:
            (output.prediction.sum() + output.embedding.sum()).backward()
    return PassMemory(retained=retained, peak=live.peak), nums_frames


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None  # DeepSpeed takes it into a bucket, which is counted elsewhere


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that come into being while it is on, until they go."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # What views of weights share is no activation.
        self._known = {_storage(tensor)._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(_storage(leaf))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
