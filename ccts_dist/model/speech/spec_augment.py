"""SpecAugment (Park et al. 2019) in transformers' speech encoders, drawn and written without waiting for the GPU."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.hubert.modeling_hubert import _compute_mask_indices

from ccts_dist.device.transfer import queued
from ccts_dist.model.pooling import real_positions


class SpecAugment:
    """An encoder's ``_mask_hidden_states``, with the masks of transformers' own, from the same draws of numpy's
    generator.

    transformers selects the masked frames by index, for which the host has to count them, and reads the lengths from
    the device. A plain object, so that a copied model copies it too.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        self._encoder = encoder
        self.num_frames: Int64[Tensor, " batch"] | None = None
        """Real frames of each row of the pass at hand, on the host; None where only the device knows them."""

        self.width: int | None = None
        """Frames over which masks are drawn, without those that rounding the length has added; None for all."""

    def __call__(
        self,
        hidden_states: Float[Tensor, "batch frames hidden"],
        mask_time_indices: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch frames hidden"]:
        config = cast(Any, self._encoder.config)
        assert mask_time_indices is None, "nobody gives masks of their own"
        if not self._encoder.training:
            return hidden_states
        num_rows, num_frames, size = hidden_states.shape
        width = min(num_frames, self.width or num_frames)
        if config.mask_time_prob > 0:
            if attention_mask is not None and self.num_frames is not None:
                attention_mask = real_positions(self.num_frames, width)
            drawn = _compute_mask_indices(
                (num_rows, width),
                mask_prob=config.mask_time_prob,
                mask_length=config.mask_time_length,
                attention_mask=cast(Any, attention_mask),
                min_masks=config.mask_time_min_masks,
            )
            masked = nn.functional.pad(torch.from_numpy(drawn), (0, num_frames - width))
            filler = cast(Tensor, self._encoder.masked_spec_embed).to(hidden_states.dtype)
            hidden_states = torch.where(queued(masked, hidden_states.device)[:, :, None], filler, hidden_states)
        if config.mask_feature_prob > 0:
            drawn = _compute_mask_indices(
                (num_rows, size),
                mask_prob=config.mask_feature_prob,
                mask_length=config.mask_feature_length,
                min_masks=getattr(config, "mask_feature_min_masks", 0),  # WavLM has none
            )
            masked = queued(torch.from_numpy(drawn), hidden_states.device)
            hidden_states = torch.where(masked[:, None], 0.0, hidden_states)
        return hidden_states
