"""The condition: which utterances a student learns from its teacher, and with what share.

Fit once, on the teacher's own training utterances; evaluated in the loss, row by row, so that neither the batch nor
the rank matters and one teacher cache serves every gate and threshold.

The result of a gate on a batch is one tensor, always called ``gate_mask``, in one of three forms:

- bool, ``batch``: rows that are distilled, in both terms;
- bool, ``batch dim``: predictions that are distilled, per dimension; the embedding term takes every row that counts,
  since one embedding serves all dimensions;
- float64, ``batch``: each row's share in both terms, 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.losses.ccc import concordance_sums
from ccts_dist.losses.constants import constant
from ccts_dist.records import Condition

GATES = ("none", "any-dimension", "per-dimension", "soft", "random", "keys", "confidence")
"""Names of the gates, as run files spell them."""

ROW_GATES = ("random", "keys", "confidence")
"""Gates that look at keys or transcripts instead of residuals; whoever reads the utterances takes their decisions."""

GateMask = Bool[Tensor, " batch"] | Bool[Tensor, "batch dim"] | Float64[Tensor, " batch"]
"""Result of a gate on a batch, in one of the three forms above."""

SMALLEST_VARIANCE = 1e-12
"""Prediction variance below which a fit has no slope: on 0..1 that is a standard deviation of 1e-6, float32's own
rounding."""


def condition_sums(
    prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"]
) -> Float64[Tensor, "6 dim"]:
    """The sums that a fit of labels on teacher predictions needs (rows as in ``ccc.SUM_ROWS``); NaN labels omitted.

    float64 raw sums: on 0..1 they lose about 1e-16 of their size, so a residual's standard deviation is good to about
    1e-8.
    """
    return concordance_sums(prediction, label, torch.ones(len(label), device=label.device))


def fit_condition(sums: Float64[Tensor, "6 dim"], targets: Sequence[str], splits: Sequence[str]) -> Condition:
    """Least squares of the labels on the teacher's predictions, per target, and the standard deviation of its
    residuals.

    w = cov(p, y) / var p, b = mean y - w mean p, and the standard deviation (dividing by n) of r = w p + b - y. A
    teacher that predicts one value for all gets w = 0 and b = mean y.

    Args:
        sums: ``condition_sums`` added over all rows of ``splits``.
        targets: names of the columns.
        splits: the splits that the rows come from; recorded.

    Raises:
        TeacherError: a target has fewer than three labels, so that a line would leave no residual to compare with; or
            its sums are not finite.
    """
    w, b, residual_std, num_rows = [], [], [], []
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
        residual_std.append(max(0.0, slope**2 * var_p - 2 * slope * covariance + var_y) ** 0.5)
        num_rows.append(int(n))
    return Condition(
        targets=tuple(targets),
        w=tuple(w),
        b=tuple(b),
        residual_std=tuple(residual_std),
        num_rows=tuple(num_rows),
        splits=tuple(splits),
    )


def residuals(
    condition: Condition, prediction: Float[Tensor, "batch dim"], label: Float[Tensor, "batch dim"]
) -> Float64[Tensor, "batch dim"]:
    """r = w p + b - y of the teacher's predictions; NaN where there is no label."""
    w, b = constant(condition.w, prediction.device), constant(condition.b, prediction.device)
    return w * prediction.double() + b - label.double()


def gate_any_dimension(
    residual: Float[Tensor, "batch dim"], residual_std: Sequence[float], threshold: float
) -> Bool[Tensor, " batch"]:
    """True for rows whose every residual is within ``threshold`` standard deviations; a missing label (NaN) passes.

    The paper's gate: one dimension beyond the threshold leaves the row out.
    """
    return gate_per_dimension(residual, residual_std, threshold).all(1)


def gate_per_dimension(
    residual: Float[Tensor, "batch dim"], residual_std: Sequence[float], threshold: float
) -> Bool[Tensor, "batch dim"]:
    """True where a residual is within ``threshold`` standard deviations; a missing label (NaN) passes."""
    widest = threshold * constant(residual_std, residual.device)
    return ~(residual.double().abs() > widest)


def widest_residual(residual: Float[Tensor, "batch dim"], residual_std: Sequence[float]) -> Float64[Tensor, " batch"]:
    """max_j |r_j| / s_j of each row; a missing label (NaN) counts as a residual of 0.

    Infinite for a row that is off in a dimension whose standard deviation is 0.
    """
    size = torch.where(torch.isnan(residual), 0.0, residual.double().abs())
    return torch.where(size > 0, size / constant(residual_std, residual.device), 0.0).amax(1)


def gate_soft(residual: Float[Tensor, "batch dim"], residual_std: Sequence[float]) -> Float64[Tensor, " batch"]:
    """exp(-max_j r_j^2 / (2 s_j^2)): 1 for a row without a residual, .61 at one standard deviation, .14 at two, .01 at
    three."""
    return torch.exp(-widest_residual(residual, residual_std).square() / 2)


def gate_none(residual: Float[Tensor, "batch dim"]) -> Bool[Tensor, " batch"]:
    """True for every row."""
    return torch.ones(len(residual), dtype=torch.bool, device=residual.device)


def gated_on(condition: Condition, targets: Sequence[str]) -> Condition:
    """The condition that no residual of another target exceeds: their standard deviation is infinite; no targets mean
    all."""
    if not targets:
        return condition
    pairs = zip(condition.targets, condition.residual_std, strict=True)
    return replace(condition, residual_std=tuple(one if target in targets else math.inf for target, one in pairs))


def apply_gate(
    gate: str,
    threshold: float,
    condition: Condition,
    prediction: Float[Tensor, "batch dim"],
    label: Float[Tensor, "batch dim"],
    weight: Float[Tensor, " batch"],
    admitted: Bool[Tensor, " batch"] | None = None,
) -> GateMask:
    """Apply the gate of this name to the rows that count; the others never pass. See ``GateMask`` for the forms.

    Args:
        gate: one of ``GATES``.
        threshold: largest residual that passes, in standard deviations; "none" and "soft" have no use for it.
        condition: the teacher's fit.
        prediction: the teacher's, from its cache.
        label: NaN where nobody rated; a row without any label passes every gate of residuals, wholly.
        weight: rows of weight 0 are not distilled.
        admitted: decisions of a gate among ``ROW_GATES``; the others have no use for it.

    Raises:
        ConfigError: there is no gate of this name.
    """
    if gate in ROW_GATES:
        assert admitted is not None, "whoever reads the utterances decides by their keys and transcripts"
        return admitted & (weight > 0)
    residual = residuals(condition, prediction, label)
    counts = weight > 0
    if gate == "none":
        return gate_none(residual) & counts
    if gate == "any-dimension":
        return gate_any_dimension(residual, condition.residual_std, threshold) & counts
    if gate == "per-dimension":
        return gate_per_dimension(residual, condition.residual_std, threshold) & counts[:, None]
    if gate == "soft":
        return torch.where(counts, gate_soft(residual, condition.residual_std), 0.0)
    raise ConfigError(f"distill.gate={gate!r} is not a gate. Use one of: {', '.join(GATES)}.")


def row_weights(gate_mask: GateMask, weight: Float[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    """Share of each row in the terms that take whole rows; with a gate per dimension 1 for every row that counts."""
    passed = torch.ones_like(weight) if gate_mask.ndim == 2 else gate_mask
    return torch.where(weight > 0, passed.double(), 0.0)


def prediction_weights(
    gate_mask: GateMask, weight: Float[Tensor, " batch"], num_dims: int
) -> Float64[Tensor, "batch dim"]:
    """Share of each row's each prediction in a term per dimension."""
    passed = gate_mask if gate_mask.ndim == 2 else gate_mask[:, None].expand(-1, num_dims)
    return torch.where((weight > 0)[:, None], passed.double(), 0.0)
