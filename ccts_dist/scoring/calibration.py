"""Calibration: the mean label of utterances with similar predictions."""

from dataclasses import dataclass

import numpy as np
import torch

from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.prediction_table import PredictionTable
from ccts_dist.scoring.speakers import sums_by_speaker

_FEWEST = 20
"""Utterances of a bin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Utterances with similar predictions."""

    prediction: float
    """Mean, on 0..1."""

    label: Interval
    """Mean with its interval over speakers; equal to ``prediction`` where the model is calibrated."""

    num_labels: int


def calibration_bins(table: PredictionTable, target: str, *, num_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Mean label by quantile of the prediction, lowest first.

    Fewer than ``num_bins`` where a bin would have fewer than 20 labels, or where predictions are equal; no bins
    without labels. Predictions that are not finite are omitted.
    """
    place = table.targets.index(target)
    prediction, label = table.predictions[:, place], table.labels[:, place]
    used = np.flatnonzero(np.isfinite(prediction) & np.isfinite(label))
    if not len(used):
        return ()
    num_bins = max(1, min(num_bins, len(used) // _FEWEST))
    edges = np.unique(np.quantile(prediction[used], np.arange(1, num_bins) / num_bins))
    band = np.searchsorted(edges, prediction[used], side="left")
    occupied = np.unique(band)
    rows = torch.zeros(len(used), 3, len(occupied), dtype=torch.float64)
    rows[torch.arange(len(used)), :, torch.from_numpy(np.searchsorted(occupied, band))] = torch.from_numpy(
        np.stack([np.ones(len(used)), label[used], prediction[used]], axis=1)
    )
    sums = sums_by_speaker([table.speakers[row] for row in used], rows)
    counts, _, predictions = sums.sum(0)
    return tuple(
        CalibrationBin(prediction=mean, label=interval, num_labels=int(count))
        for mean, interval, count in zip(
            (predictions / counts).tolist(), bootstrap(sums, lambda draws: draws[1] / draws[0]), counts, strict=True
        )
    )
