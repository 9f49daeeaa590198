"""No gradient that is not finite reaches the weights, also where DeepSpeed does not look."""

from typing import Any

import torch
from torch import Tensor


class FiniteGradients:
    """Keeps a torch optimizer from taking a step whose gradient has a NaN or an infinity: nothing of it is changed.

    For ZeRO stage 0 in float32, where DeepSpeed steps whatever the gradient is; the other stages and precisions skip
    such a step by themselves. Each rank holds the whole reduced gradient there, so all ranks judge alike.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.num_refused = 0
        """Steps that were not taken."""

        optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or bool(torch.isfinite(_total(gradients))):
            return
        self.num_refused += 1
        for parameter in parameters:
            parameter.grad = None  # torch leaves a parameter without a gradient alone, and its state too


def _total(gradients: list[Tensor]) -> Tensor:
    # A sum of magnitudes is finite only if all are (or overflows, in which case a step would be of no use either).
    return torch.stack([gradient.abs().sum(dtype=torch.float64) for gradient in gradients]).sum()
