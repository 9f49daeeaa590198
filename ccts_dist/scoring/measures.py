"""How well a model predicts a whole split: from sums that add over batches and ranks, and from ranks of values."""

import math
from collections.abc import Callable, Mapping, Sequence
from math import nan

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ccts_dist.losses.ccc import counted

SUM_ROWS = ("n", "prediction", "label", "prediction^2", "label^2", "prediction*label", "|prediction - label|")
"""Names of the seven rows of a split's sums, in order."""


def row_sums(
    prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"], weight: Float[Tensor, " batch"]
) -> Float64[Tensor, "batch 7 dim"]:
    """Each row's part of the seven sums (``SUM_ROWS``); 0 where there is no label or the weight is 0."""
    mask = counted(label, weight)
    zero = torch.zeros((), dtype=torch.float64, device=prediction.device)
    p = torch.where(mask, prediction.detach().double(), zero)
    y = torch.where(mask, label.double(), zero)
    return torch.stack([mask.double(), p, y, p * p, y * y, p * y, (p - y).abs()], dim=1)


def ccc_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """Lin's concordance correlation coefficient, population moments.

    0 if nothing varies or differs; NaN with fewer than two labels, and where a prediction is no number.
    """
    var_p, var_y, covariance, shift = _moments(sums)
    denominator = var_p + var_y + shift**2
    # Not "> 0": a prediction that is no number makes the denominator NaN, and that must be seen.
    ccc = torch.where(denominator == 0, 0.0, 2 * covariance / denominator)
    return _where_measured(sums, ccc)


def pearson_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """Pearson's correlation; NaN where predictions or labels are constant, and with fewer than two labels."""
    var_p, var_y, covariance, _ = _moments(sums)
    return _where_measured(sums, torch.where((var_p > 0) & (var_y > 0), covariance / (var_p * var_y).sqrt(), nan))


def bias_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """C_b, what shift and scale leave of Pearson's correlation: CCC = Pearson * C_b; 1 without either.

    2 sd_p sd_y / (var_p + var_y + (mean_p - mean_y)^2); NaN where Pearson's is.
    """
    var_p, var_y, _, shift = _moments(sums)
    bias = 2 * (var_p * var_y).sqrt() / (var_p + var_y + shift**2)
    return _where_measured(sums, torch.where((var_p > 0) & (var_y > 0), bias, nan))


def mae_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """Mean absolute error, in the labels' unit; NaN with fewer than two labels."""
    return _where_measured(sums, sums[6] / sums[0])


def slope_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """Slope of the labels' regression on the predictions, covariance / var_p; NaN where predictions are constant.

    Below 1 the predictions spread too far, above 1 not far enough (Cox 1958).
    """
    var_p, _, covariance, _ = _moments(sums)
    return _where_measured(sums, torch.where(var_p > 0, covariance / var_p, nan))


def intercept_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """Intercept of that regression, mean_y - slope * mean_p: ``intercept + slope * prediction`` is calibrated."""
    return (sums[2] - slope_of(sums) * sums[1]) / sums[0]


def shift_of(sums: Float64[Tensor, "7 *more"]) -> Float64[Tensor, "*more"]:
    """Mean of prediction less label; NaN with fewer than two labels."""
    return _where_measured(sums, (sums[1] - sums[2]) / sums[0])


def _where_measured(sums: Float64[Tensor, "7 *more"], figure: Float64[Tensor, "*more"]) -> Float64[Tensor, "*more"]:
    return torch.where(sums[0] >= 2, figure, nan)


def _moments(sums: Float64[Tensor, "7 *more"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Variance of predictions, of labels, covariance, difference of the means; NaN of no labels."""
    n, p, y, pp, yy, py, _ = sums
    mean_p, mean_y = p / n, y / n
    return _variance(pp / n, mean_p), _variance(yy / n, mean_y), py / n - mean_p * mean_y, mean_p - mean_y


def _variance(mean_square: Tensor, mean: Tensor) -> Tensor:
    """0 for what is below the rounding of float64 sums, where a constant would otherwise seem to vary."""
    variance = mean_square - mean**2
    return torch.where(variance <= 1e-14 * mean_square, 0.0, variance)


class SplitSums:
    """Additive float64 sums of a split's predictions and labels, per target.

    Raw sums: on 0..1, ten million utterances lose about 1e-12 of a moment. Rows of weight 0 and missing labels are
    omitted by selection. A target with fewer than two labels has no measure: NaN, not 0.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)
        self._sums: Float64[Tensor, "7 dim"] = torch.zeros(len(SUM_ROWS), len(self.targets), dtype=torch.float64)

    def add(
        self,
        prediction: Float[Tensor, "batch dim"],
        label: Float[Tensor, "batch dim"],
        weight: Float[Tensor, " batch"],
    ) -> None:
        """Count a batch, from any device; NaN labels and rows of weight 0 do not count."""
        self._sums += row_sums(prediction, label, weight).sum(0).cpu()

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
        return dict(zip(self.targets, self._sums.T.tolist(), strict=True))

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
        """By target, as ``ccc_of``."""
        return self._by_target(ccc_of)

    def pearson(self) -> dict[str, float]:
        """By target, as ``pearson_of``."""
        return self._by_target(pearson_of)

    def bias(self) -> dict[str, float]:
        """C_b by target, as ``bias_of``."""
        return self._by_target(bias_of)

    def mae(self) -> dict[str, float]:
        """By target, as ``mae_of``, on the labels' 0..1."""
        return self._by_target(mae_of)

    def _by_target(self, measure: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return dict(zip(self.targets, measure(self._sums).tolist(), strict=True))


class ConfusionSums:
    """How many of each class were taken for which, additive; figures are over the classes that occur.

    Args:
        classes: their names, in the order of their numbers.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        # Row: the true class; column: the predicted one.
        self._counts: Float64[Tensor, "classes classes"] = torch.zeros(len(classes), len(classes), dtype=torch.float64)

    def add(self, predicted: Int64[Tensor, " rows"], true: Int64[Tensor, " rows"]) -> None:
        """Count rows whose class is known, from any device."""
        size = len(self.classes)
        cells = torch.bincount(true.cpu() * size + predicted.cpu(), minlength=size * size)
        self._counts += cells.double().reshape(size, size)

    def to_tensor(self) -> Float64[Tensor, " cells"]:
        """The counts in a row, to be added over ranks."""
        return self._counts.flatten()

    @classmethod
    def from_tensor(cls, classes: Sequence[str], counts: Float64[Tensor, " cells"]) -> "ConfusionSums":
        """Counts that ``to_tensor`` gave, perhaps added over ranks."""
        whole = cls(classes)
        whole._counts = counts.detach().cpu().reshape(len(whole.classes), len(whole.classes)).clone()
        return whole

    def by_class(self) -> dict[str, list[float]]:
        """For each true class how often which was predicted, in the order of ``classes``."""
        return dict(zip(self.classes, self._counts.tolist(), strict=True))

    def weighted_accuracy(self) -> float:
        """Share of rows that are right; the recalls weighted by how often a class occurs. NaN without rows."""
        return _mean_of(self._counts.diag().sum()[None], self._counts.sum()[None])

    def unweighted_recall(self) -> float:
        """Mean recall of the classes that occur, also called unweighted accuracy; NaN without rows."""
        return _mean_of(self._counts.diag(), self._counts.sum(1))

    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur or were predicted; NaN without rows."""
        return _mean_of(2 * self._counts.diag(), self._counts.sum(0) + self._counts.sum(1))


def binned(values: Float[Tensor, "*shape"], edges: Sequence[float]) -> Int64[Tensor, "*shape"]:
    """The number of the class that each value falls into, from 0 below the first of the rising ``edges``.

    Values and edges are on 0..1. A value on an edge belongs to the class farther from the middle.
    """
    classes = torch.zeros_like(values, dtype=torch.int64)
    for edge in edges:
        at = torch.tensor(edge, dtype=values.dtype, device=values.device)  # rounded as a label on the edge is
        classes += values > at if edge <= 0.5 else values >= at
    return classes


def spearman(prediction: Float64[Tensor, " rows"], label: Float64[Tensor, " rows"]) -> float:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank.

    NaN with fewer than two rows, where either is constant, and for a prediction that is no number.
    """
    if len(prediction) < 2 or not bool(torch.isfinite(prediction).all()):
        return nan
    p, y = (_ranks(values) - (len(values) + 1) / 2 for values in (prediction, label))
    spread = math.sqrt(float(p.square().sum()) * float(y.square().sum()))
    return float((p * y).sum()) / spread if spread > 0 else nan


def _ranks(values: Float64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()


def _mean_of(hits: Float64[Tensor, " classes"], of: Float64[Tensor, " classes"]) -> float:
    there = of > 0
    return float((hits[there] / of[there]).mean())  # of nothing: NaN
