"""Check that the second round of forward passes gives the predictions of the first, on which the exact loss rests.

The loss takes its sums from the round without gradient, and its gradient at the predictions of the second. Both draw
the same random numbers; but with a gradient attention may take another kernel, which draws its dropout otherwise. The
two then differ by more than rounding, and the gradient is not that of the loss.
"""

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Widest difference of predictions, on 0..1, that rounding explains: of sums in another order, through all layers."""


class TwoRounds:
    """Compares both rounds of the first step of a rank that has two; the device does, and the host asks once.

    Args:
        dtype: that the encoder computes in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
        self._predictions: dict[int, Tensor] = {}
        self._widest: list[Tensor] = []
        self._is_over = False

    def first(self, number: int, prediction: Tensor) -> None:
        """The predictions of a micro-batch in the round without gradient."""
        if not self._is_over:
            self._predictions[number] = prediction.detach()

    def second(self, number: int, prediction: Tensor) -> None:
        """Those of the same micro-batch in the round with gradient."""
        if number in self._predictions:
            self._widest.append((prediction.detach() - self._predictions.pop(number)).abs().amax())

    def difference(self) -> float:
        """The widest difference if it is more than rounding, and 0 from then on; the host waits, but once.

        To be asked after a step. A step whose loss was not finite has no second round, and is passed over.
        """
        if not self._widest:
            return 0.0
        widest = float(torch.stack(self._widest).amax())
        self._is_over, self._widest = True, []
        self._predictions.clear()
        return widest if widest > self._tolerance else 0.0


def words(difference: float) -> str:
    """Warning of two rounds that differ."""
    return (
        f"the two rounds of forward passes give predictions that differ by {difference:.2g} (the widest of each rank, "
        "added up), with the same dropout and masks: the gradient is not exactly that of the global batch's CCC. One "
        'micro-batch per step needs no second round, and neither does loss.scope = "micro-batch".'
    )
