"""Long recordings in windows: cut while they are read, and output of a student for each as a curve over time."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from ccts_dist.audio.blocks import decode_blocks
from ccts_dist.audio.limits import MAX_DURATION_S, MIN_SAMPLES
from ccts_dist.errors import ConfigError
from ccts_dist.inference.batches import Answered, Piece
from ccts_dist.inference.predictor import CATEGORY
from ccts_dist.inference.recordings import Unreadable, shown
from ccts_dist.records import SAMPLE_RATE_HZ

SHORTEST_S = MIN_SAMPLES / SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class Windows:
    """How recordings are cut, in samples at 16 kHz."""

    length: int
    hop: int
    """From the start of one to the start of the next."""


def windows_of(window_s: float, hop_s: float | None) -> Windows:
    """Windows of so many seconds; without a hop they follow each other.

    Raises:
        ConfigError: a window that no model processes, or a hop that would leave gaps or never end.
    """
    if not SHORTEST_S <= window_s <= MAX_DURATION_S:
        raise ConfigError(f"--window {window_s:g}: must be {SHORTEST_S:g} to {MAX_DURATION_S:g} s. Try 5.")
    hop_s = window_s if hop_s is None else hop_s
    # The range first: a number of 300 digits times the sample rate is infinite, which no int is.
    length, hop = round(window_s * SAMPLE_RATE_HZ), round(hop_s * SAMPLE_RATE_HZ) if 0 < hop_s <= window_s else 0
    if not hop:
        raise ConfigError(
            f"--hop {hop_s:g}: must be above 0 and at most the window of {window_s:g} s, or audio is skipped. "
            "Try half a window."
        )
    return Windows(length, hop)


def decoded_windows(files: Sequence[Path], windows: Windows) -> Generator[Piece | Unreadable, None, None]:
    """Each file's windows in order, cut while it is read: a recording of any length takes little memory.

    Of a file that turns out to be damaged on the way the windows up to there have come by then; an ``Unreadable``
    follows.
    """
    for number, path in enumerate(files):
        name = shown(path)
        for one in cut_windows(decode_blocks(path), windows):
            if isinstance(one, str):
                yield Unreadable(name=name, number=number, reason=one)
            else:
                start, whole = one
                yield Piece(name=name, number=number, start=start, pcm16=whole)


def cut_windows(
    blocks: Iterator[Int16[np.ndarray, " _samples"] | str], windows: Windows
) -> Iterator[tuple[int, Int16[np.ndarray, " samples"]] | str]:
    """Cut windows: start and samples of each; a reason among the blocks is passed on, and ends it.

    Windows begin at multiples of the hop. What they leave over at the end is in one more window, which ends with the
    recording, so that every sample is processed in a window of full length; only a recording shorter than a window is
    one short window.
    """
    held, at, start = np.zeros(0, dtype=np.int16), 0, 0  # `held` begins at sample `at`; the next window at `start`
    end_of_last = 0
    for block in blocks:
        if isinstance(block, str):
            yield block
            return
        held = np.concatenate((held, block))
        end = at + len(held)
        while start + windows.length <= end:
            yield start, held[start - at : start - at + windows.length].copy()
            end_of_last, start = start + windows.length, start + windows.hop
        # The last window of all may begin before the next one would.
        needed = max(at, end - windows.length)
        held, at = held[needed - at :], needed
    end = at + len(held)
    if end > end_of_last:
        start = max(0, end - windows.length)
        yield start, held[start - at :].copy()


@dataclass(slots=True)
class Curve:
    """Predictions of the windows of one recording: their mean, and if they are kept, each of them.

    Args:
        columns: of the answers.
        categories: of the model.
        keep: whether times and ratings are kept, for a picture.
    """

    columns: Sequence[str]
    categories: Sequence[str]
    keep: bool
    name: str = ""
    num_windows: int = 0
    end_s: float = 0.0
    middles_s: list[float] = field(default_factory=list)
    ratings: list[list[float]] = field(default_factory=list)
    """Ratings of each window, by number of the column."""

    _sums: list[float] = field(default_factory=list)

    @property
    def numbers(self) -> list[str]:
        """Columns that are numbers."""
        return [name for name in self.columns if name != CATEGORY]

    def add(self, one: Answered) -> None:
        """One more window."""
        values = [one.answer[name] for name in self.numbers]
        self._sums = [a + b for a, b in zip(self._sums or [0.0] * len(values), values, strict=True)]
        self.name, self.end_s = one.name, one.end_s
        self.num_windows += 1
        if self.keep:
            self.middles_s.append((one.start_s + one.end_s) / 2)
            self.ratings.append(values)

    def mean(self) -> dict[str, Any]:
        """Mean of the windows, each as heavy as the others; the category is the likeliest one in the mean."""
        means = {name: total / self.num_windows for name, total in zip(self.numbers, self._sums, strict=True)}
        return _with_category(means, self.columns, self.categories)


def mean_answer(
    answers: Sequence[Mapping[str, Any]], columns: Sequence[str], categories: Sequence[str]
) -> dict[str, Any]:
    """Mean of the answers of several windows, as ``Curve.mean``."""
    names = [name for name in columns if name != CATEGORY]
    means = {name: sum(answer[name] for answer in answers) / len(answers) for name in names}
    return _with_category(means, columns, categories)


def _with_category(means: Mapping[str, float], columns: Sequence[str], categories: Sequence[str]) -> dict[str, Any]:
    likeliest = max(categories, key=lambda category: means[f"p({category})"]) if categories else ""
    return {name: likeliest if name == CATEGORY else means[name] for name in columns}
