"""How well a model predicts a whole split, from sums that add over batches and ranks."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class SplitSums:
    """Additive float64 sums of a split's predictions and labels, per target.

    Raw sums: on 0..1, ten million utterances lose about 1e-12 of a moment. Rows of weight 0 and missing labels are
    left out by selection. A target with fewer than two labels has no measure: NaN, not 0.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)
        # n, p, y, p^2, y^2, p y, |p - y|
        self._sums: Float64[Tensor, "7 dim"] = torch.zeros(7, len(self.targets), dtype=torch.float64)

    def add(
        self,
        prediction: Float[Tensor, "batch dim"],
        label: Float[Tensor, "batch dim"],
        weight: Float[Tensor, " batch"],
    ) -> None:
        """Count a batch, from any device; NaN labels and rows of weight 0 do not count."""
        mask = ~torch.isnan(label) & (weight > 0)[:, None]
        zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
        p = torch.where(mask, prediction.detach().double(), zero)
        y = torch.where(mask, label.double(), zero)
        terms = (mask.double(), p, y, p * p, y * y, p * y, (p - y).abs())
        self._sums += torch.stack([term.sum(0) for term in terms]).cpu()

    def to_tensor(self) -> Float64[Tensor, "7 dim"]:
        """The sums, to be added over ranks."""
        return self._sums.clone()

    @classmethod
    def from_tensor(cls, targets: Sequence[str], sums: Float64[Tensor, "7 dim"]) -> "SplitSums":
        """Sums that ``to_tensor`` gave, perhaps added over ranks."""
        whole = cls(targets)
        whole._sums = sums.detach().cpu().clone()
        return whole

    def by_target(self) -> dict[str, list[float]]:
        """The sums in plain numbers, for a file; those of several splits may be added."""
        return dict(self._columns())

    @classmethod
    def pooled(cls, parts: Sequence[Mapping[str, Sequence[float]]]) -> "SplitSums":
        """The sums of several splits together, each as ``by_target`` gave it; at least one, all of the same targets."""
        targets = tuple(parts[0])
        columns = [torch.tensor([part[target] for target in targets], dtype=torch.float64) for part in parts]
        return cls.from_tensor(targets, torch.stack(columns).sum(0).T)

    def num_labels(self) -> dict[str, int]:
        """Labels that were counted, by target."""
        return {target: int(n) for target, n in zip(self.targets, self._sums[0].tolist(), strict=True)}

    def ccc(self) -> dict[str, float]:
        """Lin's concordance correlation coefficient by target, population moments; 0 if nothing varies or differs."""
        return {target: _ccc(*column) for target, column in self._columns()}

    def pearson(self) -> dict[str, float]:
        """Pearson's correlation by target; NaN where predictions or labels are constant."""
        return {target: _pearson(*column) for target, column in self._columns()}

    def mae(self) -> dict[str, float]:
        """Mean absolute error by target, on the labels' 0..1."""
        return {target: absolute / n if n >= 2 else math.nan for target, (n, *_, absolute) in self._columns()}

    def _columns(self) -> list[tuple[str, list[float]]]:
        return list(zip(self.targets, self._sums.T.tolist(), strict=True))


def _moments(n: float, p: float, y: float, pp: float, yy: float, py: float) -> tuple[float, float, float, float]:
    """Variance of predictions, of labels, covariance, difference of the means."""
    mean_p, mean_y = p / n, y / n
    return _variance(pp / n, mean_p), _variance(yy / n, mean_y), py / n - mean_p * mean_y, mean_p - mean_y


def _variance(mean_square: float, mean: float) -> float:
    """0 for what is below the rounding of float64 sums, where a constant would otherwise seem to vary."""
    variance = mean_square - mean**2
    return 0.0 if variance <= 1e-14 * mean_square else variance


def _ccc(n: float, p: float, y: float, pp: float, yy: float, py: float, _absolute: float) -> float:
    if n < 2:
        return math.nan
    var_p, var_y, covariance, shift = _moments(n, p, y, pp, yy, py)
    denominator = var_p + var_y + shift**2
    # Not "> 0": a prediction that is no number makes the denominator NaN, and that must be seen.
    return 0.0 if denominator == 0 else 2 * covariance / denominator


def _pearson(n: float, p: float, y: float, pp: float, yy: float, py: float, _absolute: float) -> float:
    if n < 2:
        return math.nan
    var_p, var_y, covariance, _ = _moments(n, p, y, pp, yy, py)
    return covariance / math.sqrt(var_p * var_y) if var_p > 0 and var_y > 0 else math.nan
