"""Means of a few paired runs, and how sure they are."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TypeVar

from ccts_dist.scoring.bootstrap_intervals import t_quantile

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The mean of some values, with their spread and its 95 % interval."""

    mean: float
    std: float
    """Sample standard deviation (dividing by n - 1); NaN for a single value."""

    half_width: float
    """The interval is mean +- this; NaN for a single value."""

    count: int

    def in_words(self) -> str:
        """Mean with its sign, and the interval if there is one."""
        if math.isnan(self.half_width):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ({self.mean - self.half_width:+.3f} to {self.mean + self.half_width:+.3f})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and Student's 95 % interval, mean +- t(n - 1) std / sqrt(n); None without a value.

    The interval takes the values as independent and about normal; with five of them it is 1.24 standard deviations to
    each side.
    """
    count = len(values)
    if count == 0:
        return None
    if count == 1:
        return Estimate(mean=values[0], std=math.nan, half_width=math.nan, count=1)
    std = stdev(values)
    return Estimate(
        mean=mean(values),
        std=std,
        half_width=t_quantile(count - 1) * std / math.sqrt(count),
        count=count,
    )


def paired(a: Mapping[Key, float], b: Mapping[Key, float]) -> list[float]:
    """a - b for what both have, in a's order."""
    return [value - b[key] for key, value in a.items() if key in b]
