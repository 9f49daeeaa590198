"""Fusion of speech and text frame by frame: each attends to the other before it is pooled."""

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ccts_dist.errors import ConfigError
from ccts_dist.model.heads import WideLayerNorm
from ccts_dist.model.pooling import real_positions
from ccts_dist.model.precision import WideLinear, exact_product, widened


class CrossAttention(nn.Module):
    """Frames with what they find in another sequence: LayerNorm(x + MultiHead(query = x, key = value = y)).

    The sublayer between encoder and decoder of Vaswani et al. (2017), "Attention Is All You Need", post-norm, in
    float32 at least. Without dropout.
    """

    def __init__(self, features: int, other_features: int, num_heads: int) -> None:
        """
        Args:
            features: of each frame; a multiple of ``num_heads``.
            other_features: of each frame that is attended to.
        """
        super().__init__()
        self.num_heads = num_heads
        self.query = WideLinear(features, features)
        self.key = WideLinear(other_features, features)
        self.value = WideLinear(other_features, features)
        self.output = WideLinear(features, features)
        self.norm = WideLayerNorm(features)

    def forward(
        self,
        frames: Float[Tensor, "batch frames features"],
        others: Float[Tensor, "batch others other_features"],
        real: Bool[Tensor, "batch others"],
    ) -> Float[Tensor, "batch frames features"]:
        """
        Args:
            real: which of ``others`` are attended to, at least one of each row; all are finite.
        """
        query, key, value = (
            linear(of).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, of in ((self.query, frames), (self.key, others), (self.value, others))
        )
        scores = exact_product(query * query.shape[-1] ** -0.5, key.transpose(2, 3))
        weights = scores.masked_fill(~real[:, None, None, :], float("-inf")).softmax(dim=-1)
        found = exact_product(weights, value).transpose(1, 2).flatten(2)
        return self.norm(widened(frames) + self.output(found))


class CrossAttentionFusion(nn.Module):
    """Speech frames attend to the transcript's tokens and these to the speech frames, both as the encoders made them.

    The co-attentional layer of Lu et al. (2019), "ViLBERT", without its feed-forward sublayers. Padding of either,
    infinities included, reaches no real frame.
    """

    def __init__(self, speech_features: int, text_features: int, num_heads: int) -> None:
        """
        Raises:
            ConfigError: the heads do not divide the features.
        """
        super().__init__()
        if speech_features % num_heads or text_features % num_heads:
            raise ConfigError(
                f"model.fusion_heads = {num_heads}: must divide the {speech_features} features of the speech encoder "
                f"and the {text_features} of the text encoder. Change it."
            )
        self.speech = CrossAttention(speech_features, text_features, num_heads)
        self.text = CrossAttention(text_features, speech_features, num_heads)

    def forward(
        self,
        speech: Float[Tensor, "batch frames features"],
        num_frames: Int64[Tensor, " batch"],
        text: Float[Tensor, "batch tokens text_features"],
        num_tokens: Int64[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch frames features"], Float[Tensor, "batch tokens text_features"]]:
        """Fused frames and fused tokens; padded ones hold something finite."""
        # One is always real: attention over nothing would be NaN, as would be a weight of 0 times infinity.
        spoken, written = (
            real_positions(number.clamp(min=1), frames.shape[1])
            for frames, number in ((speech, num_frames), (text, num_tokens))
        )
        speech, text = speech.masked_fill(~spoken[:, :, None], 0.0), text.masked_fill(~written[:, :, None], 0.0)
        return self.speech(speech, text, written), self.text(text, speech, spoken)
