"""Comparison of two runs: settings, the utterances of each step, and every figure of every step they have in common."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ccts_dist.config.renamed import present_metric
from ccts_dist.errors import ConfigError
from ccts_dist.report.recorded import RecordedRun, metric_value

KEYS = "keys"
"""In a history: the checksum of the utterances of the step's global batch."""

NOT_COMPARED = ("step", "epoch", KEYS)
OF_THE_MACHINE = "throughput/", ("_s", "_mb", "_gb", "_bytes")
"""Beginning and ends of the names of figures of the machine, not of the training; compared only if asked for by
name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricComparison:
    """One figure of both runs over their common steps."""

    metric: str
    diverges_at: int | None
    """First step at which the two differ by more than the tolerance; None when they never do."""

    largest: float
    """Largest difference; infinite where one run has a number and the other NaN, an infinity or nothing."""

    largest_at: int
    """The first step that has it."""

    last: tuple[float, float]
    """Values at the last common step; NaN where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Comparison of two runs."""

    names: tuple[str, str]
    key: str
    """The figure that is compared."""

    tolerance: float
    settings: Mapping[str, tuple[Any, Any]]
    """Dotted keys that differ, with both values; None stands for absent."""

    num_steps: tuple[int, int]
    """Steps of each run."""

    common_steps: tuple[int, ...]
    """Numbers of the steps that both have, rising; never empty."""

    keys_known: bool
    """False when a run reports nothing of its utterances."""

    keys_part_at: int | None
    """First common step whose global batches are known to differ; None when none are."""

    metrics: tuple[MetricComparison, ...]
    """Comparison of every figure that both runs have, in the order of the first run's history."""

    only_in: tuple[tuple[str, ...], tuple[str, ...]]
    """Figures that only the first, only the second run has."""

    scores: Mapping[str, tuple[float, float]]
    """Figures of the finished runs; NaN where one has none."""

    notes: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Parts of each run's record that were passed over."""

    @property
    def primary(self) -> MetricComparison:
        """The comparison of the figure that is compared."""
        return next(one for one in self.metrics if one.metric == self.key)

    @property
    def agrees(self) -> bool:
        """True when the compared figure is within the tolerance in all common steps."""
        return self.primary.diverges_at is None

    @property
    def same_steps(self) -> bool:
        """True when both runs have the same steps, neither more than the other."""
        return self.num_steps == (len(self.common_steps),) * 2

    @property
    def first_to_part(self) -> MetricComparison | None:
        """The figure that parts at the earliest step, the compared one before others; None when all
        agree."""
        parted = [(one.diverges_at, one.metric != self.key, one) for one in self.metrics if one.diverges_at is not None]
        return min(parted, key=lambda entry: entry[:2], default=(0, False, None))[2]


def compare_runs(a: RecordedRun, b: RecordedRun, *, key: str = "train/loss", tolerance: float = 1e-5) -> Comparison:
    """Compare two runs over the steps that both have; reads nothing, and compares ``key`` alone.

    Two values differ by their absolute difference. NaN agrees with NaN and an infinity with itself: two runs that both
    lost a step agree on it. A step in which one run has a number and the other has none is an infinite difference.

    Args:
        a: one run.
        b: the other; runs of different length are compared up to the end of the shorter.
        key: the figure by which they are compared.
        tolerance: largest difference that still counts as agreement.

    Raises:
        ConfigError: no step in common, a figure that one of them does not have, or a tolerance below 0.
    """
    key = present_metric(key)
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"--tolerance {tolerance}: must be a number of at least 0. 1e-5 is usual in fp32.")
    common = tuple(step for step in a.steps if step in b.steps)
    if not common:
        raise ConfigError(
            f"{a.name} has steps {_span(a)}, {b.name} has {_span(b)}: none in common. Give runs that began alike."
        )
    names_a, names_b = (_metric_names(run, common, key) for run in (a, b))
    for run, names in ((a, names_a), (b, names_b)):
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names)}."
            raise ConfigError(f"--key {key!r}: {run.name} has no such figure in the common steps. {hint}")
    keys = [(a.steps[step].get(KEYS), b.steps[step].get(KEYS)) for step in common]
    return Comparison(
        names=(a.name, b.name),
        key=key,
        tolerance=tolerance,
        settings=_differing(a.settings, b.settings),
        num_steps=(len(a.steps), len(b.steps)),
        common_steps=common,
        keys_known=all(None not in pair for pair in keys),
        keys_part_at=next(
            (step for step, pair in zip(common, keys, strict=True) if None not in pair and pair[0] != pair[1]), None
        ),
        metrics=tuple(_compare_metric(a, b, name, common, tolerance) for name in names_a if name in names_b),
        only_in=(
            tuple(name for name in names_a if name not in names_b),
            tuple(name for name in names_b if name not in names_a),
        ),
        scores={
            name: (a.scores.get(name, math.nan), b.scores.get(name, math.nan))
            for name in dict.fromkeys([*a.scores, *b.scores])
        },
        notes=(a.notes, b.notes),
    )


def difference(x: float, y: float) -> float:
    """Absolute difference; 0 for two NaNs or the same infinity, infinite when only one of them is finite."""
    if x == y or (math.isnan(x) and math.isnan(y)):
        return 0.0
    return abs(x - y) if math.isfinite(x - y) else math.inf


def _compare_metric(
    a: RecordedRun, b: RecordedRun, metric: str, common: tuple[int, ...], tolerance: float
) -> MetricComparison:
    pairs = [(metric_value(a.steps[step].get(metric)), metric_value(b.steps[step].get(metric))) for step in common]
    differences = [difference(*pair) for pair in pairs]
    largest = max(differences)
    return MetricComparison(
        metric=metric,
        diverges_at=next((step for step, far in zip(common, differences, strict=True) if far > tolerance), None),
        largest=largest,
        largest_at=common[differences.index(largest)],
        last=pairs[-1],
    )


def _metric_names(run: RecordedRun, common: tuple[int, ...], key: str) -> list[str]:
    """Names of what has a number, or null for one that is not finite, in any common step, in order of appearance."""
    names = dict.fromkeys(
        name
        for step in common
        for name, value in run.steps[step].items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    )
    beginning, ends = OF_THE_MACHINE
    of_the_machine = {name for name in names if name.startswith(beginning) or name.endswith(ends)}
    return [name for name in names if name == key or not (name in NOT_COMPARED or name in of_the_machine)]


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys())}
    return {key: pair for key, pair in pairs.items() if _as_tracked(pair[0]) != _as_tracked(pair[1])}


def _as_tracked(value: Any) -> str:
    """A setting as a tracking server keeps it, so that a folder and a tracked run can be compared."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _span(run: RecordedRun) -> str:
    return f"{min(run.steps)} to {max(run.steps)}"
