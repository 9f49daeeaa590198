"""How good predictions are for parts of a split: by gender, duration, length of the transcript, and by speaker."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
from jaxtyping import Float64

from ccts_dist.scoring.bootstrap_intervals import Interval
from ccts_dist.scoring.measures import ccc_of
from ccts_dist.scoring.prediction_table import PredictionTable
from ccts_dist.scoring.target_metrics import concordances

FEWEST_UTTERANCES = 10
"""Of a speaker whose CCC is reported; of fewer it states little."""

_BANDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of a split."""

    kind: str
    """"gender", "duration" or "transcript"."""

    name: str
    num_utterances: int
    num_speakers: int
    ccc: tuple[Interval, ...]
    """Of each target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerScore:
    """One speaker's part of a split; a single speaker has no interval."""

    speaker: str
    num_utterances: int
    ccc: tuple[float, ...]
    """Of each target."""

    shift: tuple[float, ...]
    """Mean of prediction less label, on 0..1, of each target."""


def groups_of(table: PredictionTable) -> tuple[Group, ...]:
    """By gender, then by quarters of the durations, then by quarters of the numbers of words.

    Speakers are drawn within each group. Utterances of unknown gender are a group of their own.
    """
    kinds = {
        "gender": _by_name(table.genders),
        "duration": _in_bands(table.duration_s, "{:.1f} s"),
        "transcript": _in_bands(table.num_words.astype(np.float64), "{:.0f} words"),
    }
    found = []
    for kind, parts in kinds.items():
        for name, rows in parts:
            sums = table.take(rows).sums()
            found.append(
                Group(
                    kind=kind,
                    name=name,
                    num_utterances=int(rows.sum()),
                    num_speakers=len(sums),
                    ccc=concordances(sums),
                )
            )
    return tuple(found)


def speaker_scores(table: PredictionTable, *, fewest: int = FEWEST_UTTERANCES) -> tuple[SpeakerScore, ...]:
    """Each known speaker of at least ``fewest`` utterances, the lowest mean CCC first; none without targets."""
    if not table.targets:
        return ()
    rows_of: dict[str, list[int]] = {}
    for row, speaker in enumerate(table.speakers):
        if speaker is not None:
            rows_of.setdefault(speaker, []).append(row)
    found = []
    for speaker, rows in rows_of.items():
        if len(rows) >= fewest:
            sums = table.take(np.array(rows)).rows().sum(0)
            shift = (sums[1] - sums[2]) / sums[0]
            found.append(
                SpeakerScore(
                    speaker=speaker,
                    num_utterances=len(rows),
                    ccc=tuple(ccc_of(sums).tolist()),
                    shift=tuple(shift.tolist()),
                )
            )
    return tuple(sorted(found, key=lambda one: (_mean_of(one.ccc), one.speaker)))


def _mean_of(ccc: tuple[float, ...]) -> float:
    """Of those that there are; speakers without any come last."""
    known = [one for one in ccc if one == one]
    return sum(known) / len(known) if known else inf


def _by_name(names: tuple[str | None, ...]) -> Iterator[tuple[str, np.ndarray]]:
    given = np.array([name or "unknown" for name in names])
    for name in sorted(set(given.tolist()), key=lambda name: (name == "unknown", name)):
        yield name, given == name


def _in_bands(values: Float64[np.ndarray, " rows"], form: str) -> Iterator[tuple[str, np.ndarray]]:
    """Quarters of the values, fewer where many are equal; a value on an edge belongs below it."""
    edges = np.unique(np.quantile(values, np.arange(1, _BANDS) / _BANDS))
    edges = edges[edges < values.max()]
    band = np.searchsorted(edges, values, side="left")
    for number in range(len(edges) + 1):
        rows = band == number
        if rows.any():
            low, high = values[rows].min(), values[rows].max()
            number_of = form.partition("}")[0] + "}"
            yield form.format(high) if low == high else f"{number_of.format(low)} to {form.format(high)}", rows
