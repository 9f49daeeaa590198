"""The convolutional front end of a speech encoder, with group norm that does not see padding.

Base-size encoders normalise their first convolution over time. Over a padded row that mixes padding into the
statistics, so that an utterance's features depend on what else is in the batch. Here the statistics are taken over each
row's real frames only, and a row gives the same features alone and in any batch. The parameters keep their names.
"""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ccts_dist.model.pooling import real_positions
from ccts_dist.model.precision import exact_product, widened
from ccts_dist.model.speech.modified_cpc import PaddedConvLayer

WAVEFORM_NORM_EPS = 1e-7
"""Epsilon of transformers' Wav2Vec2FeatureExtractor: added to the variance of a waveform before its root is taken."""


def normalize_utterances(
    audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"], *, eps: float = WAVEFORM_NORM_EPS
) -> Float[Tensor, "batch samples"]:
    """Each row with zero mean and unit variance over its real samples, and zero after them; silence stays zero."""
    real = real_positions(num_samples, audio.shape[1])
    count = num_samples.clamp(min=1)[:, None]
    audio = widened(audio).masked_fill(~real, 0.0)
    mean = audio.sum(dim=1, keepdim=True) / count
    centred = (audio - mean).masked_fill(~real, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred * (variance + eps).rsqrt()


class MaskedGroupNorm(nn.Module):
    """Group norm with one group per channel, over each row's real frames; takes over the parameters of a usual one."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(
        self, hidden: Float[Tensor, "batch features frames"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch features frames"]:
        wide = widened(hidden)
        real = real_positions(num_frames, hidden.shape[2]).to(wide.dtype)[:, :, None]
        count = num_frames.clamp(min=1)[:, None, None]
        # Products with the mask as matrix products, which need no masked copy of the largest tensor of the model.
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            centred = wide - exact_product(wide, real) / count
            variance = exact_product(centred.square(), real) / count
        scale = (variance + self.eps).rsqrt() * self.weight[:, None]
        return (centred * scale + self.bias[:, None]).to(hidden.dtype)


class MaskedGroupNormConvLayer(GradientCheckpointingLayer):
    """A convolution, group norm over real frames, and the activation; takes over the modules of the layer it replaces.

    The lengths are an argument and not an attribute, so that recomputing the layer in the backward pass sees those of
    its own forward pass. Each part is called as a module: ZeRO-3 gathers parameters on such calls.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer.conv
        self.layer_norm = MaskedGroupNorm(cast(nn.GroupNorm, layer.layer_norm))
        self.activation = layer.activation

    def forward(
        self, hidden: Float[Tensor, "batch channels samples"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch features frames"]:
        hidden = cast(nn.Module, self.conv)(hidden)
        return cast(nn.Module, self.activation)(self.layer_norm(hidden, num_frames))


class FrontEnd(nn.Module):
    """Waveforms to frames. Real frames of a layer are those whose whole field lies on real samples, or on zeros that
    the layer itself puts beyond both ends."""

    def __init__(self, extractor: nn.Module, kernels: list[int], strides: list[int]) -> None:
        """``extractor`` is a transformers feature extractor; its layers move in here, the first one replaced if it
        normalises over time."""
        super().__init__()
        layers = list(cast(nn.ModuleList, extractor.conv_layers))
        if isinstance(getattr(layers[0], "layer_norm", None), nn.GroupNorm):
            layers[0] = MaskedGroupNormConvLayer(layers[0])
        self.conv_layers = nn.ModuleList(layers)
        self.kernels, self.strides = kernels, strides

    def forward(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch features frames"]:
        hidden, real = audio[:, None], num_samples
        for layer in self.conv_layers:
            if isinstance(layer, MaskedGroupNormConvLayer):
                first = torch.div(num_samples - self.kernels[0], self.strides[0], rounding_mode="floor") + 1
                hidden = layer(hidden, first)
            elif isinstance(layer, PaddedConvLayer):
                real = layer.num_frames(real)
                hidden = layer(hidden, real)
            else:
                hidden = layer(hidden)
        return hidden

    def samples_for(self, num_frames: int) -> int:
        """Fewest samples that give so many frames."""
        length = num_frames
        layers = zip(self.conv_layers, self.kernels, self.strides, strict=True)
        for layer, kernel, stride in reversed(list(layers)):
            beyond = 2 * layer.padding if isinstance(layer, PaddedConvLayer) else 0
            length = (length - 1) * stride + kernel - beyond
        return length
