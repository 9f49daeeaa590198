"""From a row of frames to one vector: GRU output at the last real frame, mean, standard deviation, attention.

Whatever stands in padded frames, infinities included, does not reach the vector.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ccts_dist.config import SpeechConfig, TextConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model.precision import WideLinear, widened

VARIANCE_FLOOR = 1e-8
"""Keeps the square root's derivative finite where a feature is constant, or where there is a single frame."""


def real_positions(num_real: Int64[Tensor, " batch"], num_positions: int) -> Bool[Tensor, "batch positions"]:
    """True at the first ``num_real`` of each row's ``num_positions`` samples, frames or tokens."""
    return torch.arange(num_positions, device=num_real.device) < num_real[:, None]


class GruPooling(nn.Module):
    """The top GRU layer's output at each row's last real frame.

    The GRU reads forwards only, so what stands in later frames cannot reach that output; no lengths need to travel to
    the host, as packing a sequence would ask for.
    """

    def __init__(self, features: int, hidden: int, num_layers: int) -> None:
        super().__init__()
        self.size = hidden
        self.gru = nn.GRU(features, hidden, num_layers, batch_first=True)

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        outputs, _ = self.gru(frames.to(self.gru.all_weights[0][0].dtype))
        last = num_frames.clamp(1, frames.shape[1]) - 1
        return widened(outputs[torch.arange(len(last), device=last.device), last])


class FirstPooling(nn.Module):
    """Each row's first frame: of a text encoder the token that stands for the whole, such as BERT's [CLS]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.size = features

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        return widened(frames[:, 0])


class MeanPooling(nn.Module):
    """The mean over each row's real frames."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.size = features

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        mean, _, _ = _mean_over_real(frames, num_frames)
        return mean


class StatisticsPooling(nn.Module):
    """Mean and population standard deviation over each row's real frames, side by side."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.size = 2 * features

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        mean, real, count = _mean_over_real(frames, num_frames)
        centred = (widened(frames) - mean[:, None]).masked_fill(~real, 0.0)
        std = (centred.square().sum(dim=1) / count + VARIANCE_FLOOR).sqrt()
        return torch.cat([mean, std], dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation over each row's real frames, both weighted by a learnt attention, side by side.

    Okabe, Koshinaka, Shinoda (2018), "Attentive Statistics Pooling for Deep Speaker Embedding": scores
    v . tanh(W h + b), softmax over the frames; their added constant k is omitted, since softmax does not see it.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.size = 2 * features
        self.hidden = WideLinear(features, hidden)
        self.score = WideLinear(hidden, 1, bias=False)

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        frames, real = _silenced(frames, num_frames)
        weights = _softmax_over_real(self.score(torch.tanh(self.hidden(frames))), real)
        mean = (weights * frames).sum(dim=1)
        # About the mean, and not the difference of two moments that Okabe writes, which cancels in float32.
        variance = (weights * (frames - mean[:, None]).square()).sum(dim=1)
        return torch.cat([mean, (variance + VARIANCE_FLOOR).sqrt()], dim=1)


class SelfAttentionPooling(nn.Module):
    """The mean of each row's real frames, weighted by their product with a learnt query: softmax(h . q / sqrt(d)).

    The query starts at zero, so that pooling starts as the plain mean.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.size = features
        self.query = WideLinear(features, 1, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        frames, real = _silenced(frames, num_frames)
        weights = _softmax_over_real(self.query(frames) * self.size**-0.5, real)
        return (weights * frames).sum(dim=1)


class PerTargetPooling(nn.Module):
    """Several poolings of the same frames, each with weights of its own; their vectors in the second dimension."""

    def __init__(self, poolings: Sequence["Pooling"]) -> None:
        super().__init__()
        self.size = poolings[0].size
        self.poolings = nn.ModuleList(poolings)

    def forward(
        self, frames: Float[Tensor, "batch frames features"], num_frames: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch poolings hidden"]:
        return torch.stack([pooling(frames, num_frames) for pooling in self.poolings], dim=1)


Pooling = (
    GruPooling
    | FirstPooling
    | MeanPooling
    | StatisticsPooling
    | AttentiveStatisticsPooling
    | SelfAttentionPooling
    | PerTargetPooling
)


def build_pooling(config: SpeechConfig | TextConfig, features: int) -> Pooling:
    """The pooling that a branch's table names, over frames of ``features`` numbers; ``.size`` is what comes out.

    Raises:
        ConfigError: no pooling of that name.
    """
    if config.pooling == "gru":
        return GruPooling(features, config.gru_hidden, config.gru_layers)
    if config.pooling == "first":
        return FirstPooling(features)
    if config.pooling == "mean":
        return MeanPooling(features)
    if config.pooling == "statistics":
        return StatisticsPooling(features)
    if config.pooling == "attentive-statistics":
        return AttentiveStatisticsPooling(features, config.attention_hidden)
    if config.pooling == "self-attention":
        return SelfAttentionPooling(features)
    raise ConfigError(
        f"pooling = {config.pooling!r}: must be one of 'gru', 'mean', 'statistics', 'attentive-statistics', "
        "'self-attention', 'first'. Change it."
    )


def _mean_over_real(frames: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean per row and feature, the mask [batch frames 1] it is over, and the count [batch 1], at least 1."""
    real = real_positions(num_frames, frames.shape[1])[:, :, None]
    count = num_frames.clamp(min=1)[:, None]
    # Filled, not multiplied: a padded frame may hold anything, and inf * 0 is NaN.
    return widened(frames).masked_fill(~real, 0.0).sum(dim=1) / count, real, count


def _silenced(frames: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
    """The frames with zeros for padding, in float32 at least, and the mask [batch frames 1]. One frame is always real,
    since attention over nothing would be NaN."""
    real = real_positions(num_frames.clamp(min=1), frames.shape[1])[:, :, None]
    return widened(frames).masked_fill(~real, 0.0), real


def _softmax_over_real(scores: Tensor, real: Tensor) -> Tensor:
    return scores.masked_fill(~real, float("-inf")).softmax(dim=1)
