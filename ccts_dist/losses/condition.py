"""The condition: which utterances a student learns from its teacher.

Fit once, on the teacher's own training utterances; evaluated in the loss, row by row, so that neither the batch nor
the rank matters and one teacher cache serves every threshold.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.losses.ccc import concordance_sums
from ccts_dist.records import Condition

GATES = ("none", "any-dimension")
"""Names of the gates, as run files spell them."""

SMALLEST_VARIANCE = 1e-12
"""Prediction variance below which a fit has no slope: on 0..1 that is a deviation of 1e-6, float32's own rounding."""


def condition_sums(
    prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"]
) -> Float64[Tensor, "6 dim"]:
    """The sums that a fit of labels on teacher predictions needs (rows as in ``ccc.SUM_ROWS``); NaN labels left out.

    float64 raw sums: on 0..1 they lose about 1e-16 of their size, so a deviation of residuals is good to about 1e-8.
    """
    return concordance_sums(prediction, label, torch.ones(len(label), device=label.device))


def fit_condition(sums: Float64[Tensor, "6 dim"], targets: Sequence[str], splits: Sequence[str]) -> Condition:
    """Least squares of the labels on the teacher's predictions, per target, and the deviation of its residuals.

    w = cov(p, y) / var p, b = mean y - w mean p, and the deviation (dividing by n) of r = w p + b - y. A teacher that
    predicts one value for all gets w = 0 and b = mean y.

    Args:
        sums: ``condition_sums`` added over all rows of ``splits``.
        targets: names of the columns.
        splits: the splits that the rows come from; recorded.

    Raises:
        TeacherError: a target has fewer than three labels, so that a line would leave no residual to judge by; or
            its sums are not finite.
    """
    w, b, deviation, num_rows = [], [], [], []
    for target, (n, p, y, pp, yy, py) in zip(targets, sums.T.tolist(), strict=True):
        if n < 3:
            raise TeacherError(
                f"Target {target!r} has {n:.0f} labels in the splits {', '.join(splits)}; the condition needs at "
                "least 3. Fit on splits that carry this label, or train a teacher without the target."
            )
        mean_p, mean_y = p / n, y / n
        var_p, var_y = max(0.0, pp / n - mean_p**2), max(0.0, yy / n - mean_y**2)
        covariance = py / n - mean_p * mean_y
        # Written so that NaN is refused too.
        if not (abs(covariance) < float("inf") and var_p < float("inf")):
            raise TeacherError(
                f"Target {target!r}: the teacher's predictions on {', '.join(splits)} are not all finite. "
                "The teacher has diverged: train it again, then its cache."
            )
        slope = covariance / var_p if var_p > SMALLEST_VARIANCE else 0.0
        w.append(slope)
        b.append(mean_y - slope * mean_p)
        # var(w p + b - y); with the least-squares w this is var_y - w cov, in the form that holds for w = 0 too.
        deviation.append(max(0.0, slope**2 * var_p - 2 * slope * covariance + var_y) ** 0.5)
        num_rows.append(int(n))
    return Condition(
        targets=tuple(targets),
        w=tuple(w),
        b=tuple(b),
        deviation=tuple(deviation),
        num_rows=tuple(num_rows),
        splits=tuple(splits),
    )


def residuals(
    condition: Condition, prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"]
) -> Float64[Tensor, "batch dim"]:
    """r = w p + b - y of the teacher's predictions; NaN where there is no label."""
    w = torch.tensor(condition.w, dtype=torch.float64, device=prediction.device)
    b = torch.tensor(condition.b, dtype=torch.float64, device=prediction.device)
    return w * prediction.double() + b - label.double()


def gate_any_dimension(
    residual: Float[Tensor, "batch dim"], deviation: Sequence[float], threshold: float
) -> Bool[Tensor, " batch"]:
    """True for rows whose every residual is within ``threshold`` deviations; a missing label (NaN) passes.

    The paper's gate: one dimension beyond the threshold leaves the row out.
    """
    widest = threshold * torch.tensor(tuple(deviation), dtype=torch.float64, device=residual.device)
    return ~(residual.double().abs() > widest).any(1)


def gate_none(residual: Float[Tensor, "batch dim"]) -> Bool[Tensor, " batch"]:
    """True for every row."""
    return torch.ones(len(residual), dtype=torch.bool, device=residual.device)


def kept_rows(
    gate: str,
    threshold: float,
    condition: Condition,
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """True for the rows that are distilled: those that count and that the gate of this name lets through.

    Args:
        gate: one of ``GATES``.
        threshold: widest residual that is kept, in deviations.
        condition: the teacher's fit.
        prediction: the teacher's, from its cache.
        label: NaN where nobody rated; a row without any label passes every gate.
        weight: rows of weight 0 are never kept.

    Raises:
        ConfigError: there is no gate of this name.
    """
    residual = residuals(condition, prediction, label)
    if gate == "none":
        passed = gate_none(residual)
    elif gate == "any-dimension":
        passed = gate_any_dimension(residual, condition.deviation, threshold)
    else:
        raise ConfigError(f"distill.gate={gate!r} is not a gate. Use one of: {', '.join(GATES)}.")
    return passed & (weight > 0)
