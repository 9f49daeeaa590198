"""From the embedding to the predictions: one linear layer for all targets, or a small head for each."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ccts_dist.config import ModelConfig
from ccts_dist.model.precision import WideLinear

MIDDLE = 0.5
"""Labels lie on 0..1. Started at 0, the first hundreds of steps would go into finding the middle of the scale: while
the means differ, CCC has next to no gradient for anything else."""


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda values: values,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
}
"""By the names that run files give them."""


class WideLayerNorm(nn.LayerNorm):
    """Layer normalization computed in float32 at least, whatever its weights are kept in, autocast or not."""

    def forward(self, input: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(device_type=input.device.type, enabled=False):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return nn.functional.layer_norm(input.to(dtype), self.normalized_shape, weight, bias, self.eps)


class PerTargetHeads(nn.Module):
    """For each target a hidden layer with ReLU and a linear layer of its own, in float32."""

    def __init__(self, features: int, hidden: int, num_targets: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(WideLinear(features, hidden), nn.ReLU(), _started_in_the_middle(WideLinear(hidden, 1)))
            for _ in range(num_targets)
        )

    def forward(self, embedding: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch dim"]:
        return torch.cat([head(embedding) for head in self.heads], dim=-1)


class NoTargets(nn.Module):
    """The predictions of a model that has categories alone: of no target, without a weight."""

    def forward(self, embedding: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch 0"]:
        return embedding[:, :0].float()


def build_heads(config: ModelConfig) -> WideLinear | PerTargetHeads | NoTargets:
    """Build the heads that ``model.heads`` names."""
    if not config.targets:
        return NoTargets()
    if config.heads == "per-target":
        return PerTargetHeads(config.embedding_dim, config.head_hidden_dim, len(config.targets))
    return _started_in_the_middle(WideLinear(config.embedding_dim, len(config.targets)))


def _started_in_the_middle(linear: WideLinear) -> WideLinear:
    nn.init.constant_(linear.bias, MIDDLE)
    return linear
