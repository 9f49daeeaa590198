"""Channels to one: their mean, and what keeps it from being the recording: scale, numbers, cancelling channels."""

import numpy as np
from jaxtyping import Float64

from ccts_dist.audio.limits import PEAK

NOT_FINITE = "holds samples that are not finite"

_STRETCH_S = 0.1
"""Channels are compared over stretches of so many seconds."""

_AUDIBLE = 1e-4
"""Mean square of a stretch that counts: 40 dB below full scale."""

_FAINT = (4 / 32_768) ** 2
"""Mean square of a whole recording that counts: four steps of 16 bit."""

_CANCELLED = 0.02
"""The mean of n channels that have nothing in common has 1/n of their power; with a fiftieth of that they cancel."""

_CANCELLED_S = 0.3
_CANCELLED_SHARE = 0.01
"""Seconds, and share of those that are audible, which may cancel: effects in music do for a moment."""


class UnusableAudioError(Exception):
    """Why audio cannot be used, in words that follow its name."""


class MixDown:
    """The mean of the channels of one recording, block by block.

    Args:
        rate_hz: of the recording.
        channels: of the recording.
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        self.stretch = max(1, round(_STRETCH_S * rate_hz))
        """Frames that are compared at a time: blocks should hold a whole number of these."""

        self._rate_hz, self._channels = rate_hz, channels
        self._frames = self._audible = self._cancelled = 0
        self._power_of_mean = self._power = 0.0

    def push(self, samples: Float64[np.ndarray, "samples channels"]) -> Float64[np.ndarray, " samples"]:
        """The mean of the channels of one more block.

        Raises:
            UnusableAudioError: samples that are not finite, or far beyond full scale.
        """
        if not len(samples):
            return np.zeros(0)
        peak = max(float(samples.max()), -float(samples.min()))
        if not np.isfinite(peak):
            raise UnusableAudioError(NOT_FINITE)
        if peak > PEAK:
            raise UnusableAudioError(
                f"holds samples of {peak:.6g} where full scale is 1, as on the scale of integers; divide them by "
                "their full scale (32768 for 16 bit) and write it anew"
            )
        if self._channels == 1:
            return samples[:, 0]
        mono = samples.mean(axis=1)
        self._compare(samples, mono)
        return mono

    def end(self) -> None:
        """To be called behind the last block.

        Raises:
            UnusableAudioError: the channels cancel each other, in the whole recording or a part of it.
        """
        if not self._frames:
            return
        limit = _CANCELLED / self._channels
        whole = self._power > _FAINT * self._frames and self._power_of_mean < limit * self._power
        part_s = self._cancelled / self._rate_hz
        in_part = part_s >= _CANCELLED_S and self._cancelled >= _CANCELLED_SHARE * self._audible
        if whole or in_part:
            share = "throughout" if whole else f"for {part_s:.1f} s"
            raise UnusableAudioError(
                f"has channels that cancel each other {share} when they are averaged (out of phase); write it anew "
                "with one of them"
            )

    def _compare(self, samples: Float64[np.ndarray, "samples channels"], mono: Float64[np.ndarray, " samples"]) -> None:
        """Count the frames of stretches that are audible, and of those whose channels cancel."""
        starts = np.arange(0, len(mono), self.stretch)
        lengths = np.diff(starts, append=len(mono))
        power = np.add.reduceat(np.einsum("sc,sc->s", samples, samples), starts) / self._channels
        power_of_mean = np.add.reduceat(mono * mono, starts)
        audible = power > _AUDIBLE * lengths
        cancelled = audible & (power_of_mean < _CANCELLED / self._channels * power)
        self._frames += len(mono)
        self._audible += int(lengths[audible].sum())
        self._cancelled += int(lengths[cancelled].sum())
        self._power += float(power.sum())
        self._power_of_mean += float(power_of_mean.sum())
