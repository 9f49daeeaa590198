"""The speech branch and the text branch: an encoder, what of it is trained, and its pooling."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ccts_dist.config import SpeechConfig, TextConfig, num_trainable_layers
from ccts_dist.errors import ConfigError
from ccts_dist.model.encoders import augments
from ccts_dist.model.front_end import FrontEnd, normalise_utterances
from ccts_dist.model.pooling import build_pooling, real_positions


class SpeechBranch(nn.Module):
    """Waveforms to one vector per utterance, the same alone and in any batch.

    Rows shorter than the encoder's first frame are filled up with silence to one frame. While SpecAugment is on, a
    batch shorter than its mask is padded to the mask's length, on which it would otherwise raise.
    """

    def __init__(
        self, encoder: PreTrainedModel, config: SpeechConfig, *, normalise: bool, gradient_checkpointing: bool
    ) -> None:
        super().__init__()
        settings = encoder.config
        self.normalise = normalise
        self.front_end = FrontEnd(
            cast(nn.Module, encoder.feature_extractor), list(settings.conv_kernel), list(settings.conv_stride)
        )
        # The front end runs here, where the lengths are known; the encoder is handed its frames as "input_values".
        encoder.feature_extractor = nn.Identity()
        self.encoder = encoder
        self.pooling = build_pooling(config, settings.hidden_size)
        self._silence = _zero_before_positions(encoder)
        self._augments = augments(settings)
        self._frozen = config.trainable == "none"
        self._trains_front_end = config.train_front_end
        self._freeze(config)
        if gradient_checkpointing and not self._frozen:
            _checkpoint_layers(self.front_end, encoder)

    def _freeze(self, config: SpeechConfig) -> None:
        if config.train_front_end and config.trainable != "all":
            raise ConfigError(
                f"model.speech.train_front_end = true with trainable = {config.trainable!r}: the front end is trained "
                'only below trained layers. Set trainable = "all", or train_front_end = false.'
            )
        layers = cast(nn.ModuleList, cast(nn.Module, self.encoder.encoder).layers)
        set_trainable(self.encoder, layers, config.trainable, table="model.speech")
        self.front_end.requires_grad_(config.train_front_end)
        filler = getattr(self.encoder, "masked_spec_embed", None)
        if isinstance(filler, nn.Parameter) and not (self._augments and self.encoder.config.mask_time_prob > 0):
            filler.requires_grad_(False)  # no loss reaches it, and ZeRO waits for a gradient of all that is trained

    def train(self, mode: bool = True) -> "SpeechBranch":
        """As in any module, but a frozen encoder stays in evaluation mode, and batch norm keeps its statistics."""
        super().train(mode)
        _hold_still(self.encoder, frozen=self._frozen)
        self.front_end.train(mode and self._trains_front_end)
        return self

    def forward(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        audio, num_samples = self._prepare(audio, num_samples)
        with nullcontext() if self._trains_front_end else torch.no_grad():
            frames = self.front_end(audio, num_samples)
        mask = real_positions(num_samples, audio.shape[1])
        num_frames = self.num_frames(num_samples)
        if self._silence is not None:
            self._silence.real = real_positions(num_frames, frames.shape[2])
        with torch.no_grad() if self._frozen else nullcontext():
            hidden = self.encoder(input_values=frames, attention_mask=mask.long()).last_hidden_state
        return self.pooling(hidden, num_frames)

    def num_frames(self, num_samples: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Frames that lie wholly on each row's real samples, as the encoder itself counts them."""
        count = cast(nn.Module, self.encoder)._get_feat_extract_output_lengths  # type: ignore[operator]
        return count(num_samples).to(torch.int64)  # type: ignore[operator]

    def _prepare(self, audio: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalise:
            audio = normalise_utterances(audio, num_samples)
        else:
            audio = audio.masked_fill(~real_positions(num_samples, audio.shape[1]), 0.0)
        one_frame = self.front_end.samples_for(1)
        needed = one_frame
        if self._augments and self.encoder.training:
            needed = self.front_end.samples_for(max(1, self.encoder.config.mask_time_length))
        if audio.shape[1] < needed:
            audio = F.pad(audio, (0, needed - audio.shape[1]))
        weights = next(self.front_end.parameters())
        return audio.to(weights.dtype), num_samples.clamp(min=one_frame)


class TextBranch(nn.Module):
    """Tokens to one vector per transcript, whatever stands in the padding."""

    def __init__(self, encoder: PreTrainedModel, config: TextConfig, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = build_pooling(config, encoder.config.hidden_size)
        self._frozen = config.trainable == "none"
        set_trainable(encoder, _text_layers(encoder), config.trainable, table="model.text")
        encoder.config.use_cache = False  # nothing is generated, and it is at odds with recomputing layers
        if gradient_checkpointing and not self._frozen:
            _checkpoint_layers(encoder)

    def train(self, mode: bool = True) -> "TextBranch":
        """As in any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        _hold_still(self.encoder, frozen=self._frozen)
        return self

    def forward(
        self, tokens: Int64[Tensor, "batch tokens"], num_tokens: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        num_tokens = num_tokens.clamp(min=1)  # attention over nothing would be NaN
        mask = real_positions(num_tokens, tokens.shape[1])
        with torch.no_grad() if self._frozen else nullcontext():
            hidden = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return self.pooling(hidden, num_tokens)


def set_trainable(encoder: nn.Module, layers: Iterable[nn.Module], trainable: str, *, table: str) -> None:
    """Let ``requires_grad`` say what is trained: everything, nothing, or the N top layers and nothing else.

    Raises:
        ConfigError: "top:N" of an encoder with fewer layers.
    """
    num_top = num_trainable_layers(trainable)
    encoder.requires_grad_(num_top is None)
    layers = list(layers)
    if num_top is None:
        return
    if num_top > len(layers):
        raise ConfigError(
            f"{table}.trainable = {trainable!r}: the encoder has {len(layers)} layers of its own. Name fewer, or 'all'."
        )
    for layer in layers[len(layers) - num_top :]:
        layer.requires_grad_(True)


class _ZeroPadding:
    """A forward pre-hook that silences padded frames; a plain object, so that a copied model copies it too."""

    def __init__(self) -> None:
        self.real: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.real is not None
        return (inputs[0].masked_fill(~self.real[:, None], 0.0), *inputs[1:])


def _zero_before_positions(encoder: PreTrainedModel) -> _ZeroPadding | None:
    """Silence padding before positional convolutions where transformers does not.

    transformers zeroes padded frames once. data2vec then convolves five times, and some HuBERTs apply batch norm first:
    in both the padding is no longer zero where the convolution meets it, and reaches real frames.
    """
    positions = cast(nn.Module, cast(nn.Module, encoder.encoder).pos_conv_embed)
    convolutions = [module for module in positions.modules() if isinstance(module, nn.Conv1d)]
    has_batch_norm = any(isinstance(module, nn.BatchNorm1d) for module in positions.modules())
    if len(convolutions) == 1 and not has_batch_norm:
        return None
    hook = _ZeroPadding()
    for convolution in convolutions:
        convolution.register_forward_pre_hook(hook)
    return hook


def _hold_still(encoder: nn.Module, *, frozen: bool) -> None:
    if frozen:
        encoder.eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()  # its batch statistics would depend on padding and on the cut into ranks


def _checkpoint_layers(*parts: nn.Module) -> None:
    """Recompute the transformers layers within ``parts`` in the backward pass.

    Not re-entrant: the re-entrant kind loses the gradient above frozen layers.
    """

    def recompute(function, *args):  # type: ignore[no-untyped-def]
        return checkpoint(function, *args, use_reentrant=False)

    for part in parts:
        for module in part.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = recompute  # type: ignore[assignment]
                module.gradient_checkpointing = True  # type: ignore[assignment]


def _text_layers(encoder: PreTrainedModel) -> list[nn.Module]:
    """The transformer layers, bottom first; none where layers share their weights (ALBERT)."""
    num_layers = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return list(module)
    return []
