"""How often a 95 % interval of ``ccts_dist.scoring`` holds the truth, by number of speakers.

    python -m tests.bench.scoring.coverage --speakers 20 50 100 150 400 --splits 2000

Splits are drawn from a population whose CCC is known. A speaker has an own mean label (30 % of the labels' variance),
and the model an own bias for the speaker, so that utterances of one speaker are alike. How much a speaker states is
"even" (20 utterances each), or "uneven", log-normal with a deviation of 1 in the logarithm: of 150 speakers, the most
talkative tenth then states two fifths, about as in MSP-Podcast.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccts_dist.scoring import Interval, bootstrap, sums_by_speaker
from ccts_dist.scoring.measures import ccc_of, row_sums

_SPREAD = 0.15
"""Deviation of the labels."""

_OF_SPEAKERS = 0.3
"""Share of the labels' variance that lies between speakers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """prediction = .5 + shift + slope (label - .5) + the speaker's bias + noise, in deviations of the labels."""

    slope: float
    shift: float
    bias: float
    noise: float

    @property
    def ccc(self) -> float:
        """Of the population: 2 cov / (var_p + var_y + shift^2), in units of the labels' variance."""
        variance = self.slope**2 + self.bias**2 + self.noise**2
        return 2 * self.slope / (variance + 1 + self.shift**2)


GOOD = Model(slope=0.7, shift=0.2, bias=0.3, noise=0.45)
POOR = Model(slope=0.4, shift=0.3, bias=0.4, noise=0.6)


def draw_split(generator: np.random.Generator, num_speakers: int, amounts: str) -> Tensor:
    """The sums of each speaker, in two columns: those of ``GOOD`` and of ``POOR`` on the same utterances."""
    if amounts == "even":
        each = np.full(num_speakers, 20)
    else:
        each = np.ceil(generator.lognormal(2.5, 1.0, num_speakers)).astype(int)
    speaker = np.repeat(np.arange(num_speakers), each)
    count = len(speaker)
    own = math.sqrt(_OF_SPEAKERS) * generator.standard_normal(num_speakers)[speaker]
    label = own + math.sqrt(1 - _OF_SPEAKERS) * generator.standard_normal(count)
    columns = []
    for model in (GOOD, POOR):
        bias = model.bias * generator.standard_normal(num_speakers)[speaker]
        columns.append(model.shift + model.slope * label + bias + model.noise * generator.standard_normal(count))
    predictions, labels = np.stack(columns, axis=1), np.stack([label, label], axis=1)
    scaled = [torch.from_numpy(0.5 + _SPREAD * values) for values in (predictions, labels)]
    return sums_by_speaker([str(number) for number in speaker.tolist()], row_sums(*scaled, torch.ones(count)))


def figures(draws: Tensor) -> Tensor:
    """CCC of ``GOOD``, of ``POOR``, and the gain of the first over the second."""
    ccc = ccc_of(draws)
    return torch.cat([ccc, ccc[:, :1] - ccc[:, 1:]], dim=1)


TRUTH = (GOOD.ccc, POOR.ccc, GOOD.ccc - POOR.ccc)


def intervals(num_splits: int, num_speakers: int, amounts: str) -> Iterator[tuple[Interval, ...]]:
    """The three intervals of each of so many splits."""
    generator = np.random.default_rng([num_speakers, len(amounts)])
    for number in range(num_splits):
        yield bootstrap(draw_split(generator, num_speakers, amounts), figures, seed=number)


def covered(num_splits: int, num_speakers: int, amounts: str) -> tuple[float, ...]:
    """Share of the splits whose interval holds the truth, for each of the three figures."""
    hits = np.zeros(len(TRUTH))
    for found in intervals(num_splits, num_speakers, amounts):
        hits += [one.low <= truth <= one.high for one, truth in zip(found, TRUTH, strict=True)]
    return tuple(hits / num_splits)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--speakers", type=int, nargs="+", default=[20, 50, 100, 150, 400])
    parser.add_argument("--splits", type=int, default=2_000)
    args = parser.parse_args()
    print(f"| speakers | they state | CCC {TRUTH[0]:.3f} | CCC {TRUTH[1]:.3f} | gain {TRUTH[2]:.3f} |")
    print("|---:|:--|--:|--:|--:|")
    for num_speakers in args.speakers:
        for amounts in ("even", "uneven"):
            shares = covered(args.splits, num_speakers, amounts)
            print(f"| {num_speakers} | {amounts} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
