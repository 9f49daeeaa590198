"""The speech branch and the text branch: an encoder, what of it is trained, and its pooling."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ccts_dist.batches import FrameBatch
from ccts_dist.config import SpeechConfig, TextConfig
from ccts_dist.device.transfer import queued
from ccts_dist.errors import ConfigError
from ccts_dist.model.attention import on_host, trust_masks
from ccts_dist.model.encoders import augments
from ccts_dist.model.layers import (
    EncoderLayers,
    LayerFrames,
    hold_still,
    recompute_layers,
    run_encoder,
    run_every_layer,
    still_batch_norms,
)
from ccts_dist.model.pooling import build_pooling, real_positions
from ccts_dist.model.speech.conv_padding import zero_before_convolutions
from ccts_dist.model.speech.feature_encoder import WAVEFORM_NORM_EPS, FrontEnd, normalize_utterances
from ccts_dist.model.speech.spec_augment import SpecAugment

Encoded = TypeVar("Encoded")


class SpeechBranch(nn.Module):
    """Waveforms to one vector per utterance, the same alone and in any batch.

    Rows shorter than the encoder's first frame are filled up with silence to one frame (of SEW, to as many as it
    squeezes into one). While SpecAugment is on, a batch shorter than its mask is padded to the mask's length, on which
    it would otherwise raise.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        config: SpeechConfig,
        *,
        do_normalize: bool,
        gradient_checkpointing: bool,
        table: str = "model.speech",
    ) -> None:
        """``table`` is the branch's in the run file, for errors."""
        super().__init__()
        settings = encoder.config
        self.do_normalize = do_normalize
        self._norm_eps = getattr(settings, "waveform_norm_eps", WAVEFORM_NORM_EPS)
        self.front_end = FrontEnd(
            cast(nn.Module, encoder.feature_extractor), list(settings.conv_kernel), list(settings.conv_stride)
        )
        # The front end runs here, where the lengths are known; the encoder is handed its frames as "input_values".
        encoder.feature_extractor = nn.Identity()
        self.encoder = encoder
        still_batch_norms(encoder)
        layers = EncoderLayers(encoder, table=table)
        self._chosen = layers.choose(config.layers)
        self.mixture = self._chosen.mixture
        self.frame_size = settings.hidden_size
        self.pooling = build_pooling(config, self.frame_size)
        self._silence = zero_before_convolutions(encoder)
        self._trusts_masks = trust_masks(encoder)
        self._masks = SpecAugment(encoder) if augments(settings) else None
        if self._masks is not None:
            cast(Any, encoder)._mask_hidden_states = self._masks
        # SEW's layers see one frame for so many; a rest that fills none would be pooled with padding.
        self._squeeze = getattr(settings, "squeeze_factor", 1)
        self._frozen = config.trainable == "none"
        self._trains_front_end = config.train_feature_encoder
        self._freeze(config, layers, table)
        if gradient_checkpointing and not self._frozen:
            recompute_layers(self.front_end, encoder, padding=self._silence)

    def _freeze(self, config: SpeechConfig, layers: EncoderLayers, table: str) -> None:
        if config.train_feature_encoder and config.trainable != "all":
            raise ConfigError(
                f"{table}.train_feature_encoder = true with trainable = {config.trainable!r}: the front end is trained "
                'only below trained layers. Set trainable = "all", or train_feature_encoder = false.'
            )
        layers.set_trainable(config.trainable)
        self.front_end.requires_grad_(config.train_feature_encoder)
        filler = getattr(self.encoder, "masked_spec_embed", None)
        masks_time = self._masks is not None and self.encoder.config.mask_time_prob > 0
        if isinstance(filler, nn.Parameter) and not masks_time:
            filler.requires_grad_(False)  # no loss reaches it, and ZeRO waits for a gradient of all that is trained

    def train(self, mode: bool = True) -> "SpeechBranch":
        """Switch as in any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        hold_still(self.encoder, frozen=self._frozen)
        self.front_end.train(mode and self._trains_front_end)
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
        return self._encode(audio, num_samples, run)

    def layer_frames(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> list[LayerFrames]:
        """Frames that enter the encoder's first layer, and what leaves each of its layers, the lowest first; no
        gradient.

        In evaluation mode a row's real frames are the same alone and in any batch.
        """
        with torch.no_grad():
            states, num_frames = self._encode(audio, num_samples, partial(run_every_layer, self.encoder))
        within = num_frames // self._squeeze  # SEW goes back to all frames above its top layer
        return [*(LayerFrames(state, within) for state in states[:-1]), LayerFrames(states[-1], num_frames)]

    def _encode(
        self, audio: Tensor, num_samples: Tensor, run: Callable[[dict[str, Tensor]], Encoded]
    ) -> tuple[Encoded, Tensor]:
        """Output of ``run`` for the encoder's inputs, and each row's number of real frames.

        The mask is a number for each sample: it dies here, and does not live on while the GRU runs.
        """
        known = on_host(num_samples)
        audio, num_samples = self._prepare(audio, queued(num_samples, audio.device))
        with nullcontext() if self._trains_front_end else torch.no_grad():
            frames = self.front_end(audio, num_samples)
        num_frames = self.num_frames(num_samples)
        mask = real_positions(self._samples_covered(num_samples, num_frames), audio.shape[1])
        if self._silence is not None:
            self._silence.real = real_positions(num_frames, frames.shape[2])
        inputs = {"input_values": frames, "attention_mask": mask.long()}
        if known is not None and self._look_at(known, frames.shape[2]):
            del inputs["attention_mask"]
        return run(inputs), num_frames

    def _look_at(self, num_samples: Int64[Tensor, " batch"], num_frames: int) -> bool:
        """The host's knowledge of a pass of so many frames; whether it can do without a mask."""
        real = self.num_frames(num_samples.clamp(min=self._fewest))
        if self._masks is not None:
            longest = max(self._needed, int(num_samples.max()))
            self._masks.num_frames, self._masks.width = real, int(self._count(torch.tensor(longest)))
        return self._trusts_masks and int(real.min()) == num_frames

    def num_frames(self, num_samples: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Frames that lie wholly on each row's real samples, as the encoder itself counts them."""
        num_frames = self._count(num_samples)
        return num_frames if self._squeeze == 1 else num_frames // self._squeeze * self._squeeze

    def _count(self, num_samples: Tensor) -> Tensor:
        """Frames of so many samples, before any squeezing."""
        count = cast(nn.Module, self.encoder)._get_feat_extract_output_lengths  # type: ignore[operator]
        return count(num_samples).to(torch.int64)  # type: ignore[operator]

    def _samples_covered(self, num_samples: Tensor, num_frames: Tensor) -> Tensor:
        """Samples from which the encoder shall count ``num_frames`` frames of each row."""
        if self._squeeze == 1:
            return num_samples
        return self.front_end.samples_for(1) + (num_frames - 1) * math.prod(self.front_end.strides)

    def _prepare(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        if self.do_normalize:
            audio = normalize_utterances(audio, num_samples, eps=self._norm_eps)
        else:
            audio = audio.masked_fill(~real_positions(num_samples, audio.shape[1]), 0.0)
        if audio.shape[1] < self._needed:
            audio = F.pad(audio, (0, self._needed - audio.shape[1]))
        weights = next(self.front_end.parameters())
        return audio.to(weights.dtype), num_samples.clamp(min=self._fewest)

    @property
    def _fewest(self) -> int:
        """Samples to which shorter rows are filled up."""
        return self.front_end.samples_for(self._squeeze)

    @property
    def _needed(self) -> int:
        """Samples to which shorter batches are."""
        if self._masks is None or not self.encoder.training:
            return self._fewest
        return self.front_end.samples_for(max(1, self.encoder.config.mask_time_length))


class TextBranch(nn.Module):
    """Tokens to one vector per transcript, whatever stands in the padding."""

    def __init__(self, encoder: PreTrainedModel, config: TextConfig, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.encoder = encoder
        layers = EncoderLayers(encoder, table="model.text")
        self._chosen = layers.choose(config.layers)
        self.mixture = self._chosen.mixture
        self.frame_size = encoder.config.hidden_size
        self.pooling = build_pooling(config, self.frame_size)
        self._trusts_masks = trust_masks(encoder)
        self._frozen = config.trainable == "none"
        layers.set_trainable(config.trainable)
        encoder.config.use_cache = False  # nothing is generated, and it is at odds with recomputing layers
        if gradient_checkpointing and not self._frozen:
            recompute_layers(encoder)

    def train(self, mode: bool = True) -> "TextBranch":
        """Switch as in any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        hold_still(self.encoder, frozen=self._frozen)
        return self

    def forward(
        self,
        tokens: Int64[Tensor, "batch tokens"] | None,
        num_tokens: Int64[Tensor, " batch"] | None,
        cached: FrameBatch | None = None,
    ) -> Float[Tensor, "batch *poolings hidden"]:
        """Tokens are needed unless what ``encode`` made of them was ``cached``."""
        if cached is not None:
            return self.pooling(cached.frames, cached.num_frames)
        assert tokens is not None
        assert num_tokens is not None
        return self.pooling(*self.encode(tokens, num_tokens))

    def encode(
        self, tokens: Int64[Tensor, "batch tokens"], num_tokens: Int64[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch tokens features"], Int64[Tensor, " batch"]]:
        """The encoder's frames, one per token, and how many of each row's are real."""
        inputs, num_tokens = self._inputs(tokens, num_tokens)
        return run_encoder(self.encoder, self._chosen, inputs, frozen=self._frozen), num_tokens

    def layer_frames(
        self, tokens: Int64[Tensor, "batch tokens"], num_tokens: Int64[Tensor, " batch"]
    ) -> list[LayerFrames]:
        """Frames that enter the encoder's first layer, and what leaves each of its layers, the lowest first; no
        gradient."""
        inputs, num_tokens = self._inputs(tokens, num_tokens)
        return [LayerFrames(state, num_tokens) for state in run_every_layer(self.encoder, inputs)]

    def _inputs(self, tokens: Tensor, num_tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the encoder, and each row's number of real tokens."""
        num_tokens = num_tokens.clamp(min=1)  # attention over nothing would be NaN
        known = on_host(num_tokens)
        num_tokens = queued(num_tokens, tokens.device)
        if known is not None and self._trusts_masks and int(known.min()) == tokens.shape[1]:
            return {"input_ids": tokens}, num_tokens
        mask = real_positions(num_tokens, tokens.shape[1])
        return {"input_ids": tokens, "attention_mask": mask.long()}, num_tokens
