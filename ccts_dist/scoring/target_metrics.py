"""How good the predictions of a table are, figure by figure, with intervals over its speakers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.errors import ConfigError
from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.measures import (
    bias_of,
    ccc_of,
    intercept_of,
    mae_of,
    pearson_of,
    shift_of,
    slope_of,
    spearman,
)
from ccts_dist.scoring.prediction_table import PredictionTable

FEWEST_SPEAKERS = 150
"""From here on intervals were measured to hold what they state, however unevenly speakers talk
(``tests/bench/scoring/coverage.py``)."""

MEAN = "mean over targets"
"""In the place of a target's name."""


_MEASURES = {
    "ccc": ccc_of,
    "pearson": pearson_of,
    "bias": bias_of,
    "mae": mae_of,
    "slope": slope_of,
    "intercept": intercept_of,
    "shift": shift_of,
}
"""By field of ``TargetMetrics``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetMetrics:
    """One target's figures on a split."""

    target: str
    num_labels: int
    ccc: Interval
    pearson: Interval
    bias: Interval
    """C_b: what shift and scale leave of Pearson's correlation."""

    mae: Interval
    """On 0..1."""

    slope: Interval
    """Slope of the labels' regression on the predictions; 1 where the model is calibrated."""

    intercept: Interval
    """Intercept of that regression, on 0..1; 0 where the model is calibrated."""

    shift: Interval
    """Mean of prediction less label, on 0..1."""

    spearman: float
    """Ranks are no sums over speakers: without an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two models' CCCs on the same utterances are apart."""

    target: str
    """Or ``MEAN``."""

    first: float
    second: float
    gain: Interval
    """First less second, speakers drawn for both alike."""


def metrics_of(table: PredictionTable, *, seed: int = 0) -> tuple[TargetMetrics, ...]:
    """Every target's figures, in order."""
    sums, width = table.sums(), len(table.targets)
    if not width:
        return ()

    def statistic(draws: Float64[Tensor, "7 draws columns"]) -> Float64[Tensor, "draws figures"]:
        return torch.cat([measure(draws) for measure in _MEASURES.values()], dim=1)

    found = bootstrap(sums, statistic, seed=seed)
    counts = sums[:, 0].sum(0).tolist()
    return tuple(
        TargetMetrics(
            target=target,
            num_labels=int(counts[place]),
            spearman=_spearman(table, place),
            **{name: found[number * width + place] for number, name in enumerate(_MEASURES)},
        )
        for place, target in enumerate(table.targets)
    )


def concordances(sums: Float64[Tensor, "speakers 7 dim"], *, seed: int = 0) -> tuple[Interval, ...]:
    """The CCC of each column."""
    return bootstrap(sums, ccc_of, seed=seed) if sums.shape[2] else ()


def differences(first: PredictionTable, second: PredictionTable, *, seed: int = 0) -> tuple[Difference, ...]:
    """The gain of the first model over the second in each target that both predict, and in the mean over those.

    Raises:
        ConfigError: no common target, or the tables are not of the same utterances.
    """
    targets = [target for target in first.targets if target in second.targets]
    if not targets:
        ours, theirs = (", ".join(table.targets) or "no target" for table in (first, second))
        raise ConfigError(f"models of {ours} and of {theirs} have none in common. Compare models that do.")
    if first.keys != second.keys:
        raise ConfigError(
            f"{len(first)} and {len(second)} utterances that are not the same cannot be compared in pairs. "
            "Predict the same splits of the same shards with both models."
        )
    return paired(targets, first.only(targets).sums(), second.only(targets).sums(), seed=seed)


def teacher_gap(table: PredictionTable, *, seed: int = 0) -> tuple[Difference, ...]:
    """The gain of a table's teacher over its model, in the targets that the teacher predicts."""
    columns = [place for place, target in enumerate(table.targets) if not np.isnan(table.teacher_of(target)).all()]
    targets = [table.targets[place] for place in columns]
    return paired(targets, table.teacher_sums()[:, :, columns], table.sums()[:, :, columns], seed=seed)


def paired(
    targets: Sequence[str],
    first: Float64[Tensor, "speakers 7 dim"],
    second: Float64[Tensor, "speakers 7 dim"],
    *,
    seed: int = 0,
) -> tuple[Difference, ...]:
    """The gains of two models, given each speaker's sums of both; the mean is over targets with two labels or more."""
    width = len(targets)
    measured = (first[:, 0].sum(0) >= 2).nonzero()[:, 0].tolist()

    def gains(draws: Float64[Tensor, "7 draws columns"]) -> Float64[Tensor, "draws figures"]:
        ccc = ccc_of(draws)
        gain = ccc[:, :width] - ccc[:, width:]
        return torch.cat([gain, gain[:, measured].mean(dim=1, keepdim=True)], dim=1)

    ours, theirs = (ccc_of(sums.sum(0)) for sums in (first, second))
    firsts, seconds = ([*one.tolist(), float(one[measured].mean())] for one in (ours, theirs))
    found = bootstrap(torch.cat([first, second], dim=2), gains, seed=seed)
    names = (*targets, MEAN)
    return tuple(
        Difference(target=target, first=one, second=other, gain=gain)
        for target, one, other, gain in zip(names, firsts, seconds, found, strict=True)
    )


def few_speakers(num_speakers: int) -> str:
    """A warning in words where there are too few speakers for intervals to hold what they state; else ""."""
    if num_speakers >= FEWEST_SPEAKERS:
        return ""
    return (
        f"{num_speakers} speakers, fewer than {FEWEST_SPEAKERS}: 95 % intervals may be too narrow. Take them as a lead."
    )


def _spearman(table: PredictionTable, place: int) -> float:
    rated = ~np.isnan(table.labels[:, place])
    if not rated.any():
        return nan
    columns = (table.predictions[rated, place], table.labels[rated, place])
    prediction, label = (torch.from_numpy(np.ascontiguousarray(column)) for column in columns)
    return spearman(prediction, label)
