"""Speech encoders that take input from transformers' feature extractor: Whisper, w2v-BERT, and any that is not known
here.

What an encoder makes of padding differs from one to the next. So one that is not known here reads each utterance by
itself, whatever batch it is in. Whisper and its kind read pieces of one length, 30 s, filled up with silence: a longer
utterance is cut into such pieces, and their real frames are put one after the other. w2v-BERT reads whole batches.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from ccts_dist.batches import FrameBatch
from ccts_dist.config import SpeechConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model.encoders import BATCHED_TYPES
from ccts_dist.model.layers import (
    EncoderLayers,
    LayerFrames,
    hold_still,
    recompute_layers,
    run_encoder,
    run_every_layer,
    still_batch_norms,
)
from ccts_dist.model.pooling import build_pooling
from ccts_dist.records import SAMPLE_RATE_HZ

SHORTEST_SAMPLES = SAMPLE_RATE_HZ // 4
"""Shorter utterances are filled up with silence: some encoders make one frame of sixteen spectra."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of the encoder: in each row a piece of an utterance."""

    inputs: dict[str, Tensor]
    """Inputs of the encoder, by argument."""

    rows: list[int]
    """The utterance that each piece is of; in order."""

    num_samples: list[int]
    """Real samples of each piece."""


class ExtractedBranch(nn.Module):
    """Waveforms to one vector per utterance, the same alone and in any batch.

    It is what ``SpeechBranch`` is for encoders that convolve the waveform itself.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        extractor: FeatureExtractionMixin,
        config: SpeechConfig,
        *,
        gradient_checkpointing: bool,
        table: str = "model.speech",
    ) -> None:
        """``table`` is the branch's in the run file, for errors.

        Raises:
            ConfigError: no such layer, or layers that shall be recomputed and cannot.
        """
        super().__init__()
        self.encoder, self.extractor = encoder, extractor
        fixed = [parameter for parameter in encoder.parameters() if not parameter.requires_grad]
        still_batch_norms(encoder)
        layers = EncoderLayers(encoder, table=table, is_known=False)
        self._chosen = layers.choose(config.layers)
        self.mixture = self._chosen.mixture
        self.frame_size = encoder.config.hidden_size
        self.pooling = build_pooling(config, self.frame_size)
        self._frozen = config.trainable == "none"
        layers.set_trainable(config.trainable)
        for parameter in fixed:
            parameter.requires_grad_(False)
        self._rehearsed: list[_Call] | None = None
        encoder.config.use_cache = False  # nothing is generated, and it is at odds with recomputing layers
        if gradient_checkpointing and not self._frozen:
            _check_recomputes(encoder, table)
            recompute_layers(encoder)

    @property
    def calls_vary(self) -> bool:
        """True if the encoder is called once per utterance: where ranks have unequally many, they would call it
        unequally often, and ZeRO-3 gathers weights at each call."""
        return self._piece_samples is None and self.encoder.config.model_type not in BATCHED_TYPES

    def train(self, mode: bool = True) -> "ExtractedBranch":
        """Switch as in any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        hold_still(self.encoder, frozen=self._frozen)
        return self

    def forward(
        self,
        audio: Float[Tensor, "batch samples"],
        num_samples: Int64[Tensor, " batch"],
        cached: FrameBatch | None = None,
    ) -> Float[Tensor, "batch *poolings hidden"]:
        """The audio is not looked at where what ``encode`` made of it was ``cached``."""
        frames, num_frames = self.encode(audio, num_samples) if cached is None else (cached.frames, cached.num_frames)
        return self.pooling(frames, num_frames)

    def encode(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch frames features"], Int64[Tensor, " batch"]]:
        """The encoder's frames, and how many of each row's are real."""
        run = partial(run_encoder, self.encoder, self._chosen, frozen=self._frozen)
        only = self._encode(audio, num_samples, lambda inputs: (run(inputs),))[0]
        return only.frames, only.num_frames

    def layer_frames(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> list[LayerFrames]:
        """Frames that enter the encoder's first layer, and what leaves each of its layers, the lowest first; no
        gradient."""
        with torch.no_grad():
            return self._encode(audio, num_samples, partial(run_every_layer, self.encoder))

    def rehearse(self, num_rows: int, num_samples: int) -> None:
        """From now on read so many rows of so much silence, whatever is given.

        Of tensors that have a shape and no numbers no spectrum can be computed. Call it where tensors do have numbers.
        """
        silence = torch.zeros(num_rows, num_samples)
        self._rehearsed = list(self._calls(silence, torch.full((num_rows,), num_samples)))

    @property
    def _piece_samples(self) -> int | None:
        """The one length to which the extractor brings all audio; None of most."""
        return getattr(self.extractor, "n_samples", None)

    def _encode(
        self, audio: Tensor, num_samples: Tensor, run: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
    ) -> list[LayerFrames]:
        """Each of the states that ``run`` makes of the encoder's inputs, over the whole batch."""
        weights = next(self.encoder.parameters())
        pieces: list[list[Tensor]] = []
        rows: list[int] = []
        for call in self._calls(audio, num_samples) if self._rehearsed is None else _shapes_of(self._rehearsed):
            states = run({name: _as_weights(tensor, weights) for name, tensor in call.inputs.items()})
            pieces = pieces or [[] for _ in states]
            rows += call.rows
            for state, found in zip(states, pieces, strict=True):
                found += [row[:count] for row, count in zip(state, self._nums_real(call, state.shape[1]), strict=True)]
        return [_one_row_each(found, rows) for found in pieces]

    def _calls(self, audio: Tensor, num_samples: Tensor) -> Iterator[_Call]:
        """The calls of the encoder by which it reads a batch."""
        waves = [
            np.pad(wave[:count], (0, max(0, SHORTEST_SAMPLES - count)))
            for wave, count in zip(audio.detach().float().cpu().numpy(), num_samples.tolist(), strict=True)
        ]
        rows = list(range(len(waves)))
        if self._piece_samples is not None:
            starts = [range(0, len(wave), self._piece_samples) for wave in waves]
            rows = [row for row in rows for _ in starts[row]]
            cut = (wave[at : at + self._piece_samples] for wave, own in zip(waves, starts, strict=True) for at in own)
            yield self._call(rows, list(cut), audio.device)
        elif not self.calls_vary:
            yield self._call(rows, waves, audio.device)
        else:
            for row in rows:
                yield self._call([row], waves[row : row + 1], audio.device)

    def _call(self, rows: list[int], waves: list[np.ndarray], device: torch.device) -> _Call:
        return _Call(extract(self.extractor, self.encoder, waves, device), rows, [len(wave) for wave in waves])

    def _nums_real(self, call: _Call, num_frames: int) -> list[int]:
        """How many of the ``num_frames`` frames of each piece are real."""
        if self._piece_samples is not None:
            return [-(-count * num_frames // self._piece_samples) for count in call.num_samples]
        mask = call.inputs.get("attention_mask")
        if self._rehearsed is not None or mask is None or mask.shape[1] != num_frames:
            return [num_frames] * len(call.rows)
        return mask.sum(dim=1).tolist()


def extract(
    extractor: FeatureExtractionMixin, encoder: PreTrainedModel, waves: Sequence[np.ndarray], device: torch.device
) -> dict[str, Tensor]:
    """The encoder's inputs for these waveforms at 16 kHz, by argument."""
    call = cast(Callable[..., Any], extractor)
    # Some compute spectra where they are asked to, others on the CPU.
    settings: dict[str, Any] = {"device": str(device)} if "device" in inspect.signature(call).parameters else {}
    if encoder.config.model_type in BATCHED_TYPES:
        settings["return_attention_mask"] = True
    arguments = inspect.signature(encoder.forward).parameters
    given = call(list(waves), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **settings)
    return {name: tensor for name, tensor in given.items() if name in arguments}


def _check_recomputes(encoder: PreTrainedModel, table: str) -> None:
    if not any(isinstance(module, GradientCheckpointingLayer) for module in encoder.modules()):
        raise ConfigError(
            f"model.gradient_checkpointing = true: transformers recomputes no layer of a {encoder.config.model_type} "
            f"encoder, as {table} has. Leave it out."
        )


def _as_weights(tensor: Tensor, weights: Tensor) -> Tensor:
    return tensor.to(weights.device, weights.dtype if tensor.is_floating_point() else None)


def _shapes_of(calls: Sequence[_Call]) -> Iterator[_Call]:
    """The same calls with inputs made where this is called."""
    for call in calls:
        inputs = {name: torch.zeros(given.shape, dtype=given.dtype) for name, given in call.inputs.items()}
        yield replace(call, inputs=inputs)


def _one_row_each(pieces: Sequence[Tensor], rows: Sequence[int]) -> LayerFrames:
    """The pieces of each utterance one after the other, and the utterances padded to one length."""
    own: dict[int, list[Tensor]] = {}
    for piece, row in zip(pieces, rows, strict=True):
        own.setdefault(row, []).append(piece)
    joined = [torch.cat(of_row) for of_row in own.values()]
    num_frames = torch.tensor([len(frames) for frames in joined], device=joined[0].device)
    return LayerFrames(pad_sequence(joined, batch_first=True), num_frames)
