"""How well categories are distinguished: unweighted accuracy (UAR), the mean recall of those that occur."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.errors import ConfigError
from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.measures import ConfusionSums, binned
from ccts_dist.scoring.prediction_table import PredictionTable
from ccts_dist.scoring.speakers import sums_by_speaker
from ccts_dist.scoring.target_metrics import Difference, differences

UAR = "unweighted accuracy"
"""In the place of a target's name."""


def unweighted_accuracy(table: PredictionTable, *, seed: int = 0) -> Interval:
    """The mean recall of the model's categories that occur, with its interval over speakers; NaN where none does."""
    return bootstrap(_sums(table, table), _first, seed=seed)[0]


def confusion(table: PredictionTable) -> ConfusionSums:
    """How often each of the model's categories was predicted as which, of utterances whose category it knows."""
    found, places = ConfusionSums(table.known_categories), {one: at for at, one in enumerate(table.known_categories)}
    pairs = [
        (places[predicted], places[true])
        for true, predicted in zip(table.categories, table.predicted_categories, strict=True)
        if true in places
    ]
    predicted, true = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    found.add(predicted, true)
    return found


def in_bins(table: PredictionTable, target: str, edges: Sequence[float], names: Sequence[str]) -> PredictionTable:
    """The table with the bins of one target's labels and predictions in the place of categories.

    Args:
        edges: rising, on 0..1; see ``measures.binned``.
        names: of the bins, one more than edges.
    """
    place = table.targets.index(target)
    labels, predictions = (torch.from_numpy(values[:, place].copy()) for values in (table.labels, table.predictions))
    known = np.isfinite(table.labels[:, place]) & np.isfinite(table.predictions[:, place])
    true, predicted = binned(labels, edges).tolist(), binned(predictions, edges).tolist()
    return replace(
        table,
        categories=tuple(names[number] if there else None for number, there in zip(true, known, strict=True)),
        predicted_categories=tuple(names[number] for number in predicted),
        known_categories=tuple(names),
    )


def uar_difference(first: PredictionTable, second: PredictionTable, *, seed: int = 0) -> Difference:
    """How far the unweighted accuracies of two models are apart on the same utterances, speakers drawn alike.

    Raises:
        ConfigError: they do not distinguish the same categories, or the tables are not of the same utterances.
    """
    if set(first.known_categories) != set(second.known_categories):
        raise ConfigError(
            f"models of the categories {', '.join(first.known_categories)} and {', '.join(second.known_categories)} "
            "have no unweighted accuracy in common. Compare models that distinguish the same categories."
        )
    if first.keys != second.keys:
        raise ConfigError(
            f"{len(first)} and {len(second)} utterances that are not the same cannot be compared in pairs. "
            "Predict the same splits of the same shards with both models."
        )
    sums = _sums(first, second)
    ours, theirs = (_uar(sums.sum(0)[:, None], row) for row in (1, 2))
    gain = bootstrap(sums, lambda draws: _uar(draws, 1) - _uar(draws, 2), seed=seed)[0]
    return Difference(target=UAR, first=float(ours), second=float(theirs), gain=gain)


def gains_of(first: PredictionTable, second: PredictionTable, *, seed: int = 0) -> tuple[Difference, ...]:
    """The gain of the first model over the second: see ``differences``; without a common target in unweighted accuracy.

    Raises:
        ConfigError: neither a target nor the categories in common, or the tables are not of the same utterances.
    """
    in_targets = any(target in second.targets for target in first.targets)
    if in_targets or not (first.known_categories and second.known_categories):
        return differences(first, second, seed=seed)
    return (uar_difference(first, second, seed=seed),)


def _sums(first: PredictionTable, second: PredictionTable) -> Float64[Tensor, "speakers 3 categories"]:
    """Each speaker's utterances of each category, and how many of them either model recognised."""
    places = {category: place for place, category in enumerate(first.known_categories)}
    rows = torch.zeros(len(first), 3, len(places), dtype=torch.float64)
    pairs = zip(first.categories, first.predicted_categories, second.predicted_categories, strict=True)
    for row, (true, ours, theirs) in enumerate(pairs):
        place = places.get(true) if true is not None else None
        if place is not None:
            rows[row, :, place] = torch.tensor([1.0, float(ours == true), float(theirs == true)])
    return sums_by_speaker(first.speakers, rows)


def _first(draws: Float64[Tensor, "3 draws categories"]) -> Float64[Tensor, "draws 1"]:
    return _uar(draws, 1)


def _uar(draws: Float64[Tensor, "3 draws categories"], row: int) -> Float64[Tensor, "draws 1"]:
    recall = draws[row] / draws[0]  # NaN of a category that does not occur
    return recall.nanmean(dim=1, keepdim=True)
