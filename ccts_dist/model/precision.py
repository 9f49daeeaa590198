"""Numbers that are computed in float32 at least, whatever the weights are kept in."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def widened(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same values in float32 at least: the statistics of bfloat16 numbers are mostly rounding."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class WideLinear(nn.Linear):
    """A linear layer computed in float32 at least, whatever its weights are kept in, autocast or not.

    bfloat16 has 101 values between 0.35 and 0.65, too few to tell one emotion from the next.
    """

    def forward(self, input: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(device_type=input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(input.to(dtype), self.weight.to(dtype), bias)
