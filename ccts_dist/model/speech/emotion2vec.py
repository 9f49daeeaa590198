"""emotion2vec (Ma et al., arXiv 2312.15185): the audio encoder of data2vec 2.0, pretrained on emotional speech.

Convolutions, five more for positions, and transformer layers whose attention fades with distance (ALiBi) and that
read ten learnt tokens before the frames. transformers has no such encoder, so here is one in its form, which AutoModel
opens once this module is imported. The published checkpoints, emotion2vec_base and the emotion2vec+ models, are files
that torch pickled; ``emotion2vec_checkpoint`` beside this module makes folders out of them.
"""

import math
from typing import Any, cast, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder

from ccts_dist.model.pooling import real_positions

MODEL_TYPE = "emotion2vec"


@no_type_check  # run-time checkers would hold its constructor to the fields; transformers passes more
@strict
class Emotion2vecConfig(PreTrainedConfig):
    """The shape of an emotion2vec encoder; that of emotion2vec_base by default."""

    model_type = MODEL_TYPE

    hidden_size: int = 768
    num_hidden_layers: int = 12
    """The 4 layers of the published context encoder, and the 8 blocks above it."""

    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_extra_tokens: int = 10
    """Learnt tokens before the frames."""

    conv_dim: list[int] | tuple[int, ...] = (512,) * 7
    conv_kernel: list[int] | tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: list[int] | tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 5
    """Convolutions one after the other, from which positions are known."""

    conv_pos_kernel_size: int = 19
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    waveform_norm_eps: float = 1e-5
    """Added to the variance of a waveform that is normalized before the encoder."""

    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feat_proj_dropout: float = 0.1
    """Dropout of the lowest layer's input."""

    initializer_range: float = 0.02
    apply_spec_augment: bool = False
    """Must stay false: the encoder has no SpecAugment."""

    mask_time_prob: float = 0.0
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    # What transformers' convolutions of wav2vec 2.0 read.
    conv_bias: bool = False
    feat_extract_norm: str = "layer"
    feat_extract_activation: str = "gelu"

    @property
    def num_feat_extract_layers(self) -> int:
        """Convolutions of the waveform."""
        return len(self.conv_dim)

    def validate_architecture(self) -> None:
        """Called by the decorator."""
        lists = (self.conv_dim, self.conv_kernel, self.conv_stride)
        if not self.conv_dim or len({len(one) for one in lists}) != 1:
            raise ValueError("conv_dim, conv_kernel and conv_stride must be equally long and not empty.")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % self.num_conv_pos_embedding_groups:
            raise ValueError(f"hidden_size = {self.hidden_size} must be a multiple of the numbers of heads and groups.")


class _FeatureProjection(nn.Module):
    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, hidden: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch frames features"]:
        return self.projection(self.layer_norm(hidden))


class _Positions(nn.Module):
    """Convolutions over frames, each with a norm without weights and a GELU."""

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        size, kernel = config.hidden_size, config.conv_pos_kernel_size
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps, elementwise_affine=False)
        self.even = kernel % 2 == 0  # such a kernel gives one frame too many
        self.layers = nn.ModuleList(
            nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=config.num_conv_pos_embedding_groups)
            for _ in range(config.num_conv_pos_embeddings)
        )

    def forward(self, hidden: Float[Tensor, "batch frames features"]) -> Float[Tensor, "batch frames features"]:
        for layer in self.layers:
            convolved = layer(hidden.transpose(1, 2)).transpose(1, 2)
            convolved = convolved[:, :-1] if self.even else convolved
            hidden = F.gelu(self.norm(convolved))
        return hidden


class _Attention(nn.Module):
    """Attention with one projection to queries, keys and values at once."""

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Float[Tensor, "batch tokens features"], bias: Float[Tensor, "batch heads tokens tokens"]
    ) -> Float[Tensor, "batch tokens features"]:
        rows, tokens, size = hidden.shape
        parts = self.qkv(hidden).view(rows, tokens, 3, self.num_heads, size // self.num_heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=bias, dropout_p=dropout)
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, size))


class _Layer(GradientCheckpointingLayer):
    """Attention and a feed-forward part, each added to what it reads and normalized afterwards."""

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        size, wide = config.hidden_size, config.intermediate_size
        self.attention = _Attention(config)
        self.norm1, self.norm2 = (nn.LayerNorm(size, eps=config.layer_norm_eps) for _ in range(2))
        self.fc1, self.fc2 = nn.Linear(size, wide), nn.Linear(wide, size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = self.norm1(hidden + self.dropout(self.attention(hidden, bias)))
        return self.norm2(hidden + self.dropout(self.fc2(self.activation_dropout(F.gelu(self.fc1(hidden))))))


class _Encoder(nn.Module):
    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__()
        self.pos_conv_embed = _Positions(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.feat_proj_dropout)
        self.extra_tokens = nn.Parameter(torch.randn(1, config.num_extra_tokens, config.hidden_size))
        self.distance_slopes = nn.Parameter(torch.tensor(alibi_slopes(config.num_attention_heads)))
        """[heads]: how much attention loses from one frame to the next."""
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden: Float[Tensor, "batch frames features"], real: Bool[Tensor, "batch frames"]
    ) -> list[Float[Tensor, "batch frames features"]]:
        """Frames that enter the lowest layer and what leaves each, without the extra tokens."""
        num_extra = self.extra_tokens.shape[1]
        hidden = hidden.masked_fill(~real[:, :, None], 0.0)  # for the convolutions
        hidden = hidden + self.pos_conv_embed(hidden)
        hidden = torch.cat([self.extra_tokens.expand(hidden.shape[0], -1, -1).to(hidden.dtype), hidden], dim=1)
        hidden, bias = self.dropout(self.layer_norm(hidden)), self._bias(real).to(hidden.dtype)
        states = [hidden]
        for layer in self.layers:
            states.append(layer(states[-1], bias))
        return [state[:, num_extra:] for state in states]

    def _bias(self, real: Bool[Tensor, "batch frames"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """Added to attention before the softmax: falls with the distance of frames, does not know extra tokens."""
        num_extra = self.extra_tokens.shape[1]
        at = torch.arange(real.shape[1], device=real.device)
        distances = (at[None] - at[:, None]).abs()
        slopes = self.distance_slopes.float().clamp(min=0.0)
        bias = F.pad(-slopes[:, None, None] * distances, (num_extra, 0, num_extra, 0))
        hidden_keys = F.pad(~real, (num_extra, 0), value=False)
        return bias[None].masked_fill(hidden_keys[:, None, None], float("-inf"))


def alibi_slopes(num_heads: int) -> list[float]:
    """Slopes of attention with linear biases (Press et al., arXiv 2108.12409), one a head.

    Of a power of two n: 2^(-8/n), its square, its cube ...; of another number those of the next lower power, and then
    every other one of the next higher.
    """
    low = 2 ** math.floor(math.log2(num_heads))
    first = 2 ** (-8 / low)
    slopes = [first ** (number + 1) for number in range(low)]
    return slopes if low == num_heads else slopes + alibi_slopes(2 * low)[::2][: num_heads - low]


class Emotion2vecModel(PreTrainedModel):
    """Waveforms to frames, one each 20 ms."""

    config_class = Emotion2vecConfig
    base_model_prefix = "emotion2vec"
    main_input_name = "input_values"

    def __init__(self, config: Emotion2vecConfig) -> None:
        super().__init__(config)
        self.feature_extractor = Wav2Vec2FeatureEncoder(cast(Any, config))
        self.feature_projection = _FeatureProjection(config)
        self.encoder = _Encoder(config)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """``input_values`` are samples [batch samples], or frames [batch features frames] if the convolutions were
        taken out; ``attention_mask`` [batch samples] is true for real samples."""
        frames = self.feature_extractor(input_values).transpose(1, 2)
        if attention_mask is None:
            real = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        else:
            real = real_positions(self._get_feat_extract_output_lengths(attention_mask.sum(dim=1)), frames.shape[1])
        states = self.encoder(self.feature_projection(frames), real)
        hidden_states = cast(Any, tuple(states)) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=hidden_states)

    def _get_feat_extract_output_lengths(self, num_samples: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            num_samples = torch.div(num_samples - kernel, stride, rounding_mode="floor") + 1
        return num_samples


AutoConfig.register(MODEL_TYPE, Emotion2vecConfig)
AutoModel.register(Emotion2vecConfig, Emotion2vecModel)
