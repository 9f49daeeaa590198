"""Audio of any duration in blocks: the samples that a shard would carry, without ever holding the whole recording."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float64, Int16

from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards import audio
from ccts_dist.shards.containers import missing_audio, mp3_samples, with_length

_BLOCK_FRAMES = 262_144
"""Read at a time: 6 s of 44.1 kHz, 2 MB per channel in float64."""

_HALF_WIDTH = 6.0 / 0.99
"""Zero crossings on either side of the resampling filter, over its roll-off (defaults of torchaudio)."""


def decode_blocks(path: Path) -> Iterator[Int16[np.ndarray, " samples"] | str]:
    """A file's audio block by block; and, where it cannot be used or read to its end, why, in words, as the last item.

    End to end the blocks are what ``decode_audio`` gives of the whole. What is wrong with headers and containers is
    said before the first block; damage within the audio, after those before it.
    """
    try:
        with open(path, "rb") as opened:
            yield from _blocks(opened)
    except (OSError, soundfile.LibsndfileError) as error:
        yield audio.why_not_decoded(error)


def _blocks(opened: io.BufferedReader) -> Iterator[Int16[np.ndarray, " samples"] | str]:
    missing, counted = missing_audio(opened), mp3_samples(opened)
    if missing:
        yield missing
        return
    with audio.AnyLength(audio.for_libsndfile(with_length(opened)), closefd=False) as file:
        rate, stated = file.samplerate, file.frames
        if not audio.can_resample(rate):
            yield audio.cannot_resample(rate) if stated else audio.NO_AUDIO
            return
        resampler = BlockResampler(rate)
        read = given = 0
        while len(samples := file.read(_BLOCK_FRAMES, dtype="float64", always_2d=True)):
            if not np.isfinite(samples).all():
                yield audio.NOT_FINITE
                return
            read += len(samples)
            ready = audio.to_whole(resampler.push(samples.mean(axis=1)))
            given += len(ready)
            if len(ready):
                yield ready
    last = audio.to_whole(resampler.end())
    given += len(last)
    if len(last):
        yield last
    reason = audio.why_incomplete(read, stated, counted) or (audio.too_short(given) if _is_short(given) else "")
    if reason:
        yield reason


def _is_short(num_samples: int) -> bool:
    return num_samples < audio.MIN_SAMPLES


class BlockResampler:
    """``resample`` of a signal that comes in blocks: whatever the blocks, the same but for rounding in float64.

    Args:
        rate_hz: of the signal; one that ``can_resample``.
    """

    # The filter repeats every ``_in`` samples of input, which give ``_out`` of output. A period needs ``_margin``
    # periods on either side of its own, and the signal begins and ends in silence, as it does for ``resample``.
    def __init__(self, rate_hz: int) -> None:
        divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
        self._rate_hz = rate_hz
        self._in, self._out = rate_hz // divisor, SAMPLE_RATE_HZ // divisor
        width = math.ceil(_HALF_WIDTH * self._in / min(self._in, self._out))
        self._margin = math.ceil(width / self._in)
        self._held: Float64[np.ndarray, " samples"] = np.zeros(0)
        self._before = 0
        """Periods at the beginning of what is held whose output has been given."""

    def push(self, block: Float64[np.ndarray, " samples"]) -> Float64[np.ndarray, " resampled"]:
        """One more block; what can be said by now."""
        if self._rate_hz == SAMPLE_RATE_HZ:
            return block
        self._held = np.concatenate((self._held, block))
        ready = len(self._held) // self._in - self._margin - 1
        if ready <= self._before:
            return np.zeros(0)
        given = audio.resample(self._held, self._rate_hz)[self._before * self._out : ready * self._out]
        kept = max(0, ready - self._margin)
        self._held, self._before = self._held[kept * self._in :].copy(), ready - kept
        return given

    def end(self) -> Float64[np.ndarray, " resampled"]:
        """The rest."""
        if self._rate_hz == SAMPLE_RATE_HZ or not len(self._held):
            return np.zeros(0)
        return audio.resample(self._held, self._rate_hz)[self._before * self._out :]
