"""How lexical a model is: whether it errs as a model errs that reads nothing but the words.

Of a model's predictions p, those t of a text-only model, and the labels y, the partial correlation (Fisher 1924)

    r_pt.y = (r_pt - r_py r_ty) / sqrt((1 - r_py^2) (1 - r_ty^2))

is the correlation of what the labels' straight-line fit leaves of p and of t. Above 0, the words draw p to one side of
the label. Labels are noisy, and what they miss may be in the voice and in the words alike: a model that knows no word
need not have 0. So the figure to read is its change from a model of the voice alone to one that was distilled.
Triantafyllopoulos et al. (2204.00400) probe the same with sentences that are spoken without emotion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.errors import ConfigError
from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.groups import Part
from ccts_dist.scoring.prediction_table import PredictionTable
from ccts_dist.scoring.speakers import sums_by_speaker
from ccts_dist.scoring.target_metrics import Difference, differences

_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (2, 1), (0, 2))
"""Pairs of prediction, label and text-only prediction, whose products are summed after n and the three themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentimentGain:
    """The gain of one model over another where the words have about the same sentiment."""

    name: str
    """From which to which prediction of the text-only model, on the corpus's scale."""

    num_utterances: int
    gains: tuple[Difference, ...]


def lexical_correlations(table: PredictionTable, text: PredictionTable, *, seed: int = 0) -> dict[str, Interval]:
    """r_pt.y of each target that both predict; NaN where one of the three is constant, or p or t is the label.

    Args:
        table: the model's predictions.
        text: the text-only model's, of the same utterances.
        seed: of the draws.

    Raises:
        ConfigError: no common target, or other utterances.
    """
    targets = _common(table, text)
    found = bootstrap(_sums(table, text, targets), _partial, seed=seed)
    return dict(zip(targets, found, strict=True))


def lexical_changes(
    first: PredictionTable, second: PredictionTable, text: PredictionTable, *, seed: int = 0
) -> tuple[Difference, ...]:
    """r_pt.y of one model less that of another, in each target that all three predict; speakers drawn alike.

    Raises:
        ConfigError: as ``lexical_correlations``.
    """
    targets = [target for target in _common(first, text) if target in second.targets]
    if not targets:
        return ()
    sums = [_sums(table, text, targets) for table in (first, second)]
    width = len(targets)

    def change(draws: Float64[Tensor, "10 draws columns"]) -> Float64[Tensor, "draws figures"]:
        found = _partial(draws)
        return found[:, :width] - found[:, width:]

    ours, theirs = (_partial(one.sum(0)[:, None])[0].tolist() for one in sums)
    gains = bootstrap(torch.cat(sums, dim=2), change, seed=seed)
    return tuple(
        Difference(target=target, first=one, second=other, gain=gain)
        for target, one, other, gain in zip(targets, ours, theirs, gains, strict=True)
    )


def gains_by_sentiment(
    first: PredictionTable, second: PredictionTable, parts: Sequence[Part]
) -> tuple[SentimentGain, ...]:
    """The gain of the first model in CCC, by what a text-only model predicts.

    Args:
        first: one model's predictions.
        second: another's, of the same utterances.
        parts: utterances whose words have about the same sentiment.
    """
    return tuple(
        SentimentGain(name=name, num_utterances=int(rows.sum()), gains=differences(first.take(rows), second.take(rows)))
        for name, rows in parts
    )


def _common(table: PredictionTable, text: PredictionTable) -> list[str]:
    targets = [target for target in table.targets if target in text.targets]
    if not targets:
        raise ConfigError(
            f"--text-model: predicts {', '.join(text.targets) or 'no target'}, and a model here "
            f"{', '.join(table.targets) or 'none'}. Give one that predicts the same."
        )
    if table.keys != text.keys:
        raise ConfigError("--text-model: was not evaluated on the same utterances. Predict the same splits with it.")
    return targets


def _sums(
    table: PredictionTable, text: PredictionTable, targets: Sequence[str]
) -> Float64[Tensor, "speakers 10 columns"]:
    """Each speaker's n, sums of p, y and t, and sums of their products (``_PAIRS``), over the rows with a label."""
    own, words = table.only(targets), text.only(targets)
    known = torch.from_numpy(np.isfinite(own.labels))
    three = [
        torch.where(known, torch.from_numpy(values), 0.0) for values in (own.predictions, own.labels, words.predictions)
    ]
    rows = torch.stack([known.double(), *three, *(three[one] * three[other] for one, other in _PAIRS)], dim=1)
    return sums_by_speaker(table.speakers, rows)


def _partial(draws: Float64[Tensor, "10 draws columns"]) -> Float64[Tensor, "draws columns"]:
    n, *sums = draws
    mean = [one / n for one in sums[:3]]
    moments = [one / n - mean[a] * mean[b] for one, (a, b) in zip(sums[3:], _PAIRS, strict=True)]
    # Below the rounding of the sums a constant would seem to vary: as in ``measures``.
    var_p, var_y, var_t = (
        torch.where(moment <= 1e-14 * square / n, nan, moment)
        for moment, square in zip(moments[:3], sums[3:6], strict=True)
    )
    r_py, r_ty, r_pt = (
        moment / (a * b).sqrt()
        for moment, (a, b) in zip(moments[3:], ((var_p, var_y), (var_t, var_y), (var_p, var_t)), strict=True)
    )
    left = (1 - r_py**2) * (1 - r_ty**2)
    return torch.where(left > 1e-12, (r_pt - r_py * r_ty) / left.clamp(min=0).sqrt(), nan)
