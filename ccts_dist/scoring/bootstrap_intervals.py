"""How sure a figure of a split is: 95 % intervals from drawing its speakers with replacement.

A speaker's utterances are alike, so that speakers are drawn, and not utterances. A figure is a function of sums that
add over speakers (``measures.SUM_ROWS``): a draw is a weighted sum, whatever the number of utterances. Figures that are
computed of the same draws may be subtracted: that is what makes an interval of a difference a paired one.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float64
from scipy.special import stdtrit
from torch import Tensor

REPLICATES = 1_000

_NUMBERS_AT_ONCE = 1 << 21
"""Draws that are held at a time: 16 MB."""

_MOST_WITHOUT = 0.1
"""Share of the draws that may have no figure, two labels being too few of anything; with more there is no interval."""

Statistic = Callable[[Float64[Tensor, "sums draws columns"]], Float64[Tensor, "draws figures"]]
"""Figures of some splits at once, given the sums of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure, and between which values it is with 95 % confidence."""

    value: float
    low: float
    """NaN, as ``high``, where there is none: a single speaker, or a figure that most draws do not have."""

    high: float

    @property
    def is_known(self) -> bool:
        """True if there is an interval."""
        return self.low == self.low


def bootstrap(
    sums: Float64[Tensor, "speakers sums columns"],
    statistic: Statistic,
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
    num_groups: int = 1,
) -> tuple[Interval, ...]:
    """Each figure of ``statistic`` with its interval; the same on every machine for equal sums and seed.

    The ends are quantiles of the draws, a little farther out than 2.5 and 97.5 %: Hesterberg's expanded percentile
    interval (The American Statistician 69, 2015), with as many speakers as the uneven ones amount to.
    ``tests/bench/scoring/coverage.py`` measures what it covers; Efron's BCa covered less where some speakers speak
    much.

    Args:
        sums: of each speaker, the first of them how many labels; several models side by side are more columns.
        statistic: what is wanted; called with the sums of many draws at once.
        seed: of the draws.
        replicates: how many draws.
        num_groups: how many groups of speakers have columns of their own, side by side; the interval of what compares
            them is as wide as the smallest asks for.
    """
    value = statistic(sums.sum(0)[:, None])[0]
    num_speakers = len(sums)
    if num_speakers < 2:
        return tuple(Interval(value=one, low=torch.nan, high=torch.nan) for one in value.tolist())
    drawn = torch.cat([statistic(draws) for draws in _draws(sums, seed, replicates)])
    known = (drawn.isnan().double().mean(0) <= _MOST_WITHOUT) & ~value.isnan()
    fewest = min(_effective(counts.sum(1)) for counts in sums[:, 0].chunk(num_groups, dim=1))
    ends = torch.tensor(_ends(fewest), dtype=torch.float64)
    low, high = torch.where(known, torch.nanquantile(drawn, ends, dim=0), torch.nan).tolist()
    return tuple(
        Interval(value=one, low=left, high=right) for one, left, right in zip(value.tolist(), low, high, strict=True)
    )


def _draws(
    sums: Float64[Tensor, "speakers sums columns"], seed: int, replicates: int
) -> Iterator[Float64[Tensor, "sums draws columns"]]:
    generator, num_speakers = np.random.default_rng(seed), len(sums)
    at_once = max(1, _NUMBERS_AT_ONCE // num_speakers)
    for start in range(0, replicates, at_once):
        count = min(at_once, replicates - start)
        who = generator.integers(0, num_speakers, (count, num_speakers)) + num_speakers * np.arange(count)[:, None]
        times = np.bincount(who.ravel(), minlength=count * num_speakers).reshape(count, num_speakers)
        drawn = torch.from_numpy(times).double() @ sums.flatten(1)
        yield drawn.unflatten(1, sums.shape[1:]).transpose(0, 1)


def t_quantile(freedom: int, coverage: float = 0.95) -> float:
    """The t that a Student variable lies below in size with probability ``coverage``.

    Args:
        freedom: degrees of freedom, at least 1.
        coverage: above 0 and below 1.
    """
    return float(stdtrit(freedom, (1 + coverage) / 2))


def _ends(num_speakers: float) -> tuple[float, float]:
    """Shares of the draws below the two ends, for so many equal speakers.

    Half of a draw's spread is missing where there are few: the normal quantile makes room for Student's, and for
    n - 1 in place of n.
    """
    freedom = max(1, int(num_speakers) - 1)
    share = NormalDist().cdf(-t_quantile(freedom) * math.sqrt((freedom + 1) / freedom))
    return share, 1 - share


def _effective(num_labels: Float64[Tensor, " speakers"]) -> float:
    """How many equal speakers these amount to (Kish 1965): (sum n)^2 / sum n^2."""
    squares = float(num_labels.square().sum())
    return float(num_labels.sum()) ** 2 / squares if squares > 0 else 0.0
