"""Audio of any rate at 16 kHz: windowed sinc, as torchaudio has it, in memory that does not depend on the rate."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
import torchaudio
from jaxtyping import Float64
from numpy.lib.stride_tricks import sliding_window_view

from ccts_dist.records import SAMPLE_RATE_HZ

_ZERO_CROSSINGS = 6
_ROLL_OFF = 0.99
"""The filter's half width and the share of the band that it keeps (defaults of torchaudio)."""

_MAX_KERNEL = 1_000_000
"""Numbers in torchaudio's filter bank (8 MB), a filter for each output of a period; it grows with the rates over their
common divisor. Beyond it each output's filter is interpolated."""

_AT_A_TIME = 200_000
"""Numbers of such filters that are held (1.6 MB)."""

_PER_CROSSING = 8_192
"""Points of the filter that are tabled between two zero crossings, 100,000 in all at any rate. Between them a line errs
by 2e-8 (-154 dB)."""

_WHOLE_FRAMES = 1 << 21
"""Audio up to here (44 s of 48 kHz) is resampled in one piece, which takes 230 MB; longer audio in blocks."""


def resampled(
    blocks: Iterable[Float64[np.ndarray, " _samples"]], rate_hz: int, *, whole_frames: int = _WHOLE_FRAMES
) -> Iterator[Float64[np.ndarray, " _resampled"]]:
    """The same sound at 16 kHz, as it comes.

    Args:
        rate_hz: of the blocks.
        whole_frames: audio up to this length is resampled in one piece, whatever its blocks.
    """
    if rate_hz == SAMPLE_RATE_HZ:
        yield from blocks
        return
    first: list[Float64[np.ndarray, " _samples"]] = []
    rest = iter(blocks)
    for block in rest:
        first.append(block)
        if sum(map(len, first)) > whole_frames:
            break
    else:
        if first:
            yield resample(np.concatenate(first), rate_hz)
        return
    resampler = BlockResampler(rate_hz)
    for block in chain(first, rest):
        yield resampler.push(block)
    yield resampler.end()


def resample(mono: Float64[np.ndarray, " samples"], rate_hz: int) -> Float64[np.ndarray, " resampled"]:
    """The same sound at 16 kHz, in one piece."""
    if not _has_few_filters(rate_hz):
        return _with_filters_on_the_spot(mono, 0, rate_hz, 0, _num_resampled(len(mono), rate_hz))
    wave = torch.from_numpy(np.ascontiguousarray(mono))
    return torchaudio.functional.resample(wave, rate_hz, SAMPLE_RATE_HZ).numpy()


def _has_few_filters(rate_hz: int) -> bool:
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    return (rate_hz // divisor) * (SAMPLE_RATE_HZ // divisor) <= _MAX_KERNEL


def _num_resampled(num_samples: int, rate_hz: int) -> int:
    return -(-num_samples * SAMPLE_RATE_HZ // rate_hz)


def _reach(rate_hz: int) -> int:
    """Samples on either side of an output's place that its filter spans."""
    return math.ceil(_ZERO_CROSSINGS / _ROLL_OFF * max(1.0, rate_hz / SAMPLE_RATE_HZ))


def _with_filters_on_the_spot(
    held: Float64[np.ndarray, " samples"], at: int, rate_hz: int, start: int, stop: int
) -> Float64[np.ndarray, " resampled"]:
    """Outputs ``start`` to ``stop`` of a signal that is silent before and behind what is held.

    Output n lies at sample n * rate / 16,000; its filter is on the line between two of ``_filter_bank``.

    Args:
        held: of the signal.
        at: its first sample that is held.
    """
    filters, slopes = _filter_bank(rate_hz)
    num_phases, num_taps = filters.shape
    windows = sliding_window_view(np.pad(held, _reach(rate_hz) + 1), num_taps)
    found = np.empty(max(0, stop - start))
    step = max(1, _AT_A_TIME // num_taps)
    for first in range(start, stop, step):
        numbers = np.arange(first, min(stop, first + step), dtype=np.int64)
        whole, part = np.divmod(numbers * rate_hz, SAMPLE_RATE_HZ)
        phase, rest = np.divmod(part * num_phases, SAMPLE_RATE_HZ)
        samples = windows[whole - at + 1]
        between = np.einsum("nt,nt->n", slopes[phase], samples) * (rest / SAMPLE_RATE_HZ)
        found[first - start : first - start + len(numbers)] = between + np.einsum("nt,nt->n", filters[phase], samples)
    return found


@lru_cache(maxsize=8)
def _filter_bank(
    rate_hz: int,
) -> tuple[Float64[np.ndarray, "phases taps"], Float64[np.ndarray, "phases taps"]]:
    """Filters of outputs that lie q / phases behind a sample, and their change from one phase to the next.

    A filter is sinc(t) cos^2(pi t / 12), t counted in zero crossings.
    """
    reach, band = _reach(rate_hz), _ROLL_OFF * min(1.0, SAMPLE_RATE_HZ / rate_hz)
    num_phases = math.ceil(_PER_CROSSING * band)
    t = np.abs(np.arange(-reach, reach + 1) - np.arange(num_phases + 1)[:, None] / num_phases) * band
    window = np.cos(np.pi / (2 * _ZERO_CROSSINGS) * t) ** 2
    values = np.where(t < _ZERO_CROSSINGS, band * np.sinc(t) * window, 0.0)
    return values[:-1], np.diff(values, axis=0)


class BlockResampler:
    """``resample`` of a signal that comes in blocks: whatever the blocks, the same but for rounding in float64.

    Args:
        rate_hz: of the signal.
    """

    # The filter repeats every ``_in`` samples of input, which give ``_out`` of output. A period needs ``_margin``
    # periods on either side of its own, and the signal begins and ends in silence, as it does for ``resample``.
    def __init__(self, rate_hz: int) -> None:
        divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
        self._rate_hz = rate_hz
        self._in, self._out = rate_hz // divisor, SAMPLE_RATE_HZ // divisor
        width = math.ceil(_ZERO_CROSSINGS / _ROLL_OFF * self._in / min(self._in, self._out))
        self._margin = math.ceil(width / self._in)
        self._held: Float64[np.ndarray, " samples"] = np.zeros(0)
        self._before = 0
        """Periods at the beginning of what is held whose output has been given."""

        self._on_the_spot = not _has_few_filters(rate_hz)
        self._at = self._given = 0
        """Without periods: the first sample that is held, and the number of outputs that were given."""

    def push(self, block: Float64[np.ndarray, " samples"]) -> Float64[np.ndarray, " resampled"]:
        """Take one more block; gives the output that follows from what has come."""
        if self._rate_hz == SAMPLE_RATE_HZ:
            return block
        self._held = np.concatenate((self._held, block))
        if self._on_the_spot:
            last = self._at + len(self._held) - _reach(self._rate_hz) - 1
            return self._outputs(max(self._given, last * SAMPLE_RATE_HZ // self._rate_hz))
        ready = len(self._held) // self._in - self._margin - 1
        if ready <= self._before:
            return np.zeros(0)
        given = resample(self._held, self._rate_hz)[self._before * self._out : ready * self._out]
        dropped = max(0, ready - self._margin)
        self._held, self._before = self._held[dropped * self._in :].copy(), ready - dropped
        return given

    def end(self) -> Float64[np.ndarray, " resampled"]:
        """The rest of the output."""
        if self._rate_hz == SAMPLE_RATE_HZ or not len(self._held):
            return np.zeros(0)
        if self._on_the_spot:
            return self._outputs(_num_resampled(self._at + len(self._held), self._rate_hz))
        return resample(self._held, self._rate_hz)[self._before * self._out :]

    def _outputs(self, stop: int) -> Float64[np.ndarray, " resampled"]:
        given = _with_filters_on_the_spot(self._held, self._at, self._rate_hz, self._given, stop)
        self._given = stop
        needed = stop * self._rate_hz // SAMPLE_RATE_HZ - _reach(self._rate_hz) - 1
        drop = min(max(0, needed - self._at), len(self._held))
        self._held, self._at = self._held[drop:].copy(), self._at + drop
        return given
