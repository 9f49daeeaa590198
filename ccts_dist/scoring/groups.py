"""How good predictions are for parts of a split: by gender, duration, length of the transcript, and by speaker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ccts_dist.scoring.bootstrap_intervals import Interval, bootstrap
from ccts_dist.scoring.measures import ccc_of, shift_of
from ccts_dist.scoring.prediction_table import PredictionTable
from ccts_dist.scoring.speakers import sums_by_speaker
from ccts_dist.scoring.target_metrics import concordances

FEWEST_UTTERANCES = 10
"""Fewest utterances of a speaker whose CCC is reported; a CCC of fewer states little."""

UNKNOWN = "unknown"

AGES = {"0 to 29": 30, "30 to 49": 50, "50 and over": inf}
"""Name of each band, in their order as in that of the names, and the age in years that it ends below."""

_BANDS = 4

Part = tuple[str, Bool[np.ndarray, " rows"]]
"""Name of a part of the rows, and which they are."""

_NO_PARTS: Mapping[str, Sequence[Part]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of a split."""

    kind: str
    """"gender", "age", "duration", "transcript" or "sentiment"."""

    name: str
    num_utterances: int
    num_speakers: int
    ccc: tuple[Interval, ...]
    """CCC of each target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far two groups of speakers are apart (fairness as in Wagner et al. 2023): the one less the other."""

    kind: str
    """"gender" or "age"."""

    name: str
    other: str
    ccc: tuple[Interval, ...]
    """Difference of the CCCs, of each target."""

    shift: tuple[Interval, ...]
    """Difference of the means of prediction less label, on 0..1: above 0, the one group is predicted higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerScore:
    """One speaker's part of a split; a single speaker has no interval."""

    speaker: str
    num_utterances: int
    ccc: tuple[float, ...]
    """CCC of each target."""

    shift: tuple[float, ...]
    """Mean of prediction less label, on 0..1, of each target."""


def groups_of(table: PredictionTable, more: Mapping[str, Sequence[Part]] = _NO_PARTS) -> tuple[Group, ...]:
    """By gender, then by quarters of the durations, of the numbers of words, and by the parts of ``more``.

    Speakers are drawn within each group. Utterances of unknown gender are a group of their own.

    Args:
        table: the predictions.
        more: further parts, by kind.
    """
    kinds = {
        "gender": by_name(table.genders),
        "duration": in_bands(table.duration_s, "{:.1f} s"),
        "transcript": in_bands(table.num_words.astype(np.float64), "{:.0f} words"),
    }
    found = []
    for kind, parts in {**kinds, **more}.items():
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


def gaps_of(table: PredictionTable, more: Mapping[str, Sequence[Part]] = _NO_PARTS) -> tuple[Gap, ...]:
    """Each known gender, and each part of ``more``, less the first of its kind; none without targets.

    Speakers are drawn from the two groups together.

    Args:
        table: the predictions.
        more: further groups of speakers, by kind.
    """
    found: list[Gap] = []
    for kind, parts in {"gender": by_name(table.genders), **more}.items() if table.targets else ():
        known = [part for part in parts if part[0] != UNKNOWN]
        found += [_gap(table, kind, part, known[0]) for part in known[1:]]
    return tuple(found)


def by_age(speakers: Sequence[str | None], ages: Mapping[str, float]) -> list[Part]:
    """The bands of ``AGES`` that occur, the youngest first, and then the speakers of unknown age.

    Args:
        speakers: of each row.
        ages: in years, by speaker.
    """
    known = (ages.get(speaker or "") for speaker in speakers)
    return by_name([None if age is None else next(name for name, end in AGES.items() if age < end) for age in known])


def _gap(table: PredictionTable, kind: str, one: Part, other: Part) -> Gap:
    width, rows = len(table.targets), table.rows()
    apart = [torch.where(torch.from_numpy(mask)[:, None, None], rows, 0.0) for _, mask in (one, other)]
    both = np.flatnonzero(one[1] | other[1])
    sums = sums_by_speaker([table.speakers[row] for row in both], torch.cat(apart, dim=2)[both])

    def differences(draws: Float64[Tensor, "7 draws columns"]) -> Float64[Tensor, "draws figures"]:
        return torch.cat([found[:, :width] - found[:, width:] for found in (ccc_of(draws), shift_of(draws))], dim=1)

    found = bootstrap(sums, differences, num_groups=2)
    return Gap(kind=kind, name=one[0], other=other[0], ccc=found[:width], shift=found[width:])


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
    """Mean of those that there are; speakers without any come last."""
    known = [one for one in ccc if one == one]
    return sum(known) / len(known) if known else inf


def by_name(names: Sequence[str | None]) -> list[Part]:
    """The rows of each name, in the order of the names, and last those without one."""
    given = np.array([name or UNKNOWN for name in names])
    return [(name, given == name) for name in sorted(set(given.tolist()), key=lambda name: (name == UNKNOWN, name))]


def in_bands(values: Float64[np.ndarray, " rows"], form: str) -> list[Part]:
    """Name and rows of quarters of the values, fewer where many are equal; a value on an edge belongs below it."""
    edges = np.unique(np.quantile(values, np.arange(1, _BANDS) / _BANDS))
    edges = edges[edges < values.max()]
    band, parts = np.searchsorted(edges, values, side="left"), []
    for number in range(len(edges) + 1):
        rows = band == number
        if rows.any():
            low, high = values[rows].min(), values[rows].max()
            number_of = form.partition("}")[0] + "}"
            name = form.format(high) if low == high else f"{number_of.format(low)} to {form.format(high)}"
            parts.append((name, rows))
    return parts
