"""Numbers that are computed in float32 at least, whatever the weights are kept in, and never in TF32."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ccts_dist.device.arithmetic import exact_float32, tf32_is_on


def widened(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same values in float32 at least: the statistics of bfloat16 numbers are mostly rounding."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class WideLinear(nn.Linear):
    """A linear layer computed in float32 at least, whatever its weights are kept in, autocast and TF32 or not.

    bfloat16 has 101 values between 0.35 and 0.65, too few to distinguish one emotion from the next.
    """

    def forward(self, input: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        with torch.autocast(device_type=input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            if not tf32_is_on():
                return F.linear(input.to(dtype), self.weight.to(dtype), bias)
            product = exact_product(input.to(dtype).flatten(0, -2), self.weight.to(dtype).t())
            product = product.unflatten(0, input.shape[:-1])
            return product if bias is None else product + bias


def exact_product(
    left: Float[Tensor, "*batch rows inner"], right: Float[Tensor, "*same inner columns"]
) -> Float[Tensor, "*batch rows columns"]:
    """The matrix product, rounded to TF32 neither here nor in its backward pass, though all around it may be.

    One matrix on the right of a batch of others gets no gradient.
    """
    if not tf32_is_on():
        return torch.matmul(left, right)
    return _ExactProduct.apply(left, right)  # type: ignore[return-value]


class _ExactProduct(torch.autograd.Function):
    """A function of its own, since the backward pass runs after the block around the forward pass has ended."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with exact_float32():
            return torch.matmul(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        wants_left, wants_right = ctx.needs_input_grad
        with exact_float32():
            of_left = torch.matmul(gradients[0], right.mT) if wants_left else None
            of_right = torch.matmul(left.mT, gradients[0]) if wants_right else None
        return of_left, of_right
