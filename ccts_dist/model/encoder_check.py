"""Trying out a speech encoder that takes input from a feature extractor, before it becomes part of a model.

transformers has dozens of models with as many habits. What is relied on here is tried on noise when an encoder is
loaded, so that one that does not fit is refused in words then, and not in the middle of a training.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from ccts_dist.config import SpeechConfig, layer_number
from ccts_dist.errors import ConfigError
from ccts_dist.model.encoders import BATCHED_TYPES, SHAPE_ERRORS
from ccts_dist.model.layers import EncoderLayers, named_layers, states_of
from ccts_dist.model.speech.feature_extractor_branch import SHORTEST_SAMPLES, extract
from ccts_dist.records import SAMPLE_RATE_HZ

KNOWN_TYPES = ("whisper", *BATCHED_TYPES)
"""Model types whose layers are known here to do as they should, and take no part in the trial: Whisper's largest has
those that take half a minute on two cores."""

SHORT, LONG, LONGEST = SHORTEST_SAMPLES + 1, 16 * SHORTEST_SAMPLES + 3, 120 * SAMPLE_RATE_HZ
"""Samples of the three pieces of noise; odd numbers, since not every encoder takes them."""


def check_encoder(encoder: PreTrainedModel, extractor: FeatureExtractionMixin, speech: SpeechConfig) -> None:
    """Refuse an encoder that does not do what is relied on; leave weights that no frame depends on untrained.

    Raises:
        ConfigError: it does not run on what the extractor gives; what comes out are no frames, or as many of short
            audio as of long; audio is cut; or what leaves its layers is not where ``layers`` would take it.
    """
    words = f"model.speech.encoder = {speech.encoder!r} is of type {encoder.config.model_type!r}, and"
    is_known = encoder.config.model_type in KNOWN_TYPES
    encoder.eval()
    try:
        _check_lengths(extractor, encoder)
        with _without_layers(encoder) if is_known else nullcontext():
            counts = [_num_frames(encoder, extractor, num_samples) for num_samples in (SHORT, LONG)]
        if getattr(extractor, "n_samples", None) is None and counts[1] < 8 * counts[0]:
            raise ValueError(f"it makes {counts[0]} frames of 0.25 s of audio and {counts[1]} of 4 s")
        if not is_known:
            _check_layers(encoder, extractor, speech.layers)
            if speech.trainable != "none":
                _leave_unused_untrained(encoder, extractor)
    except SHAPE_ERRORS as error:
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise ConfigError(f"{words} cannot be used: {reason}. Name another, or change its extractor.") from error


def _noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.1, size=num_samples).astype(np.float32)


def _inputs(encoder: PreTrainedModel, extractor: FeatureExtractionMixin, num_samples: int) -> dict[str, Tensor]:
    return extract(extractor, encoder, [_noise(num_samples)], torch.device("cpu"))


def _check_lengths(extractor: FeatureExtractionMixin, encoder: PreTrainedModel) -> None:
    """Raises: ValueError: long audio is cut, or taken apart."""
    piece = getattr(extractor, "n_samples", None)
    if piece is not None:
        if not isinstance(piece, int) or piece < SHORTEST_SAMPLES:
            raise ValueError(f"its extractor makes pieces of {piece} samples, and a quarter of a second is needed")
        return
    sizes = []
    for num_samples in (LONG, LONGEST):
        inputs = _inputs(encoder, extractor, num_samples)
        if any(len(tensor) != 1 for tensor in inputs.values()):
            raise ValueError(f"its extractor takes {num_samples / SAMPLE_RATE_HZ:.0f} s of audio apart")
        sizes.append(sum(tensor.numel() for tensor in inputs.values()))
    if sizes[1] < 0.9 * sizes[0] * LONGEST / LONG:
        raise ValueError(f"its extractor cuts {LONGEST / SAMPLE_RATE_HZ:.0f} s of audio, or fills up 4 s")


def _num_frames(encoder: PreTrainedModel, extractor: FeatureExtractionMixin, num_samples: int) -> int:
    with torch.no_grad():
        frames = encoder(**_inputs(encoder, extractor, num_samples)).last_hidden_state
    if frames.ndim != 3 or frames.shape[2] != encoder.config.hidden_size or not frames.shape[1]:
        raise ValueError(f"it gives {list(frames.shape)}, no frames of {encoder.config.hidden_size} features")
    if not frames.isfinite().all():
        raise ValueError("its frames are not finite")
    return frames.shape[1]


def _check_layers(encoder: PreTrainedModel, extractor: FeatureExtractionMixin, layers: str) -> None:
    """Raises: ValueError: what is taken is not what leaves the encoder's layers as transformers reports it."""
    if layers == "last":
        return
    inputs = _inputs(encoder, extractor, LONG)
    with torch.no_grad():
        states = states_of(encoder(**inputs, output_hidden_states=True))
        if len(states) != len(named_layers(encoder) or ()) + 1:
            raise ValueError(f"it does not report what leaves each of its layers, and layers = {layers!r}, not 'last'")
        number = layer_number(layers)
        if number is None:
            taken = states
        else:
            cut = copy.deepcopy(encoder)
            EncoderLayers(cut, table="model.speech", is_known=False).choose(layers)
            taken, states = (cut(**inputs).last_hidden_state,), states[number : number + 1]
    size = encoder.config.hidden_size
    if any(one.shape[2] != size for one in taken) or not _agree(taken, states):
        raise ValueError(f"it does more than its layers between them, and layers = {layers!r}, not 'last'")


def _agree(taken: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    if {one.shape for one in taken} != {expected[0].shape}:
        return False
    return all(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(taken, expected, strict=True))


def _leave_unused_untrained(encoder: PreTrainedModel, extractor: FeatureExtractionMixin) -> None:
    """ZeRO waits for a gradient of all that is trained."""
    output = encoder(**_inputs(encoder, extractor, SHORT))
    output.last_hidden_state.sum().backward()
    for parameter in encoder.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None


@contextmanager
def _without_layers(encoder: PreTrainedModel) -> Iterator[None]:
    layers: Any = named_layers(encoder)
    removed = list(layers)
    del layers[:]
    try:
        yield
    finally:
        layers.extend(removed)
