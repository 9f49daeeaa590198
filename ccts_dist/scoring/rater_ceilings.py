"""Raters' ceilings: the CCC of raters with each other, on whose scale the CCC of a model is to be read.

A label is the mean m of n ratings with the population variance v. Let k of the n raters, drawn at random, be compared
with the mean of the other n - k. Drawing without replacement gives their mean the variance
``u = v / k * (n - k) / (n - 1)`` about m; the others' mean lies on the other side of m, k / (n - k) times as far. So an
utterance adds, in expectation, m^2 + u and m^2 + (k / (n - k))^2 u to the two sums of squares, and m^2 - k / (n - k) u
to that of products. The CCC of these sums is exact up to a term of 1 / utterances; nothing is drawn.

A model may well have a higher CCC than one rater: its label is the mean of all. The noise ceiling (Lage-Castellanos et
al. 2019) is the CCC of a model that gives each utterance's expected rating, where raters answer independently: the
variance of a label about it is then estimated by v / (n - 1).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.measures import ccc_of
from ccts_dist.scoring.prediction_table import PredictionTable
from ccts_dist.scoring.speakers import sums_by_speaker


@dataclass(frozen=True, slots=True, kw_only=True)
class RaterCeiling:
    """CCCs of one target's raters, over the utterances that at least two of them rated."""

    target: str
    num_labels: int
    """Number of labels of these utterances."""

    one: Interval
    """One rater, against the mean of the others."""

    half: Interval
    """The mean of half of them (n // 2), against the mean of the others."""

    noise: Interval
    """Expected rating, against the mean of all."""


def rater_ceilings(table: PredictionTable, *, seed: int = 0) -> tuple[RaterCeiling, ...]:
    """The ceilings of each target that has labels with two raters or more and a variance."""
    if table.raters is None:
        return ()
    count, found = table.raters.count, []
    for place, target in enumerate(table.targets):
        label, variance = table.labels[:, place], table.raters.variance[:, place]
        used = np.flatnonzero(np.isfinite(label) & np.isfinite(variance) & (count >= 2))
        if len(used) >= 2:
            rows = torch.from_numpy(_row_sums(label[used], variance[used], count[used]))
            sums = sums_by_speaker([table.speakers[row] for row in used], rows)
            one, half, noise = bootstrap(sums, ccc_of, seed=seed)
            found.append(RaterCeiling(target=target, num_labels=len(used), one=one, half=half, noise=noise))
    return tuple(found)


def _row_sums(
    label: Float64[np.ndarray, " rows"], variance: Float64[np.ndarray, " rows"], count: Int64[np.ndarray, " rows"]
) -> Float64[np.ndarray, "rows 7 3"]:
    """Expected ``measures.SUM_ROWS``, the last 0: of one rater, of half of them, and of the expected rating."""
    ones, square = np.ones_like(label), label**2
    columns = []
    for some in (np.ones_like(count), count // 2):
        others = count - some
        spread = variance / some * others / (count - 1)
        ratio = some / others
        columns.append((ones, label, label, square + spread, square + ratio**2 * spread, square - ratio * spread))
    truth = square - variance / (count - 1)
    columns.append((ones, label, label, truth, square, truth))
    return np.stack([np.stack([*column, np.zeros_like(label)], axis=1) for column in columns], axis=2)
