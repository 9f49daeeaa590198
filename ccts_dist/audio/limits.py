"""Limits on audio that is decoded: the one place that decides for build, predict, serve, augment and transcribe."""

from dataclasses import dataclass

from ccts_dist.records import SAMPLE_RATE_HZ

MIN_SAMPLES = 400
"""The first frame of HuBERT, wav2vec 2.0 and their kin spans 400 samples (25 ms); shorter audio gives no frame."""

MAX_DURATION_S = 600.0
"""Longer audio is not used, unless a builder is given another limit."""

MAX_STREAMED_S = 86_400.0
"""Longer audio is not used either where it is decoded block by block: a day, which four megabytes of FLAC may state."""

MIN_RATE_HZ = 1_000
MAX_RATE_HZ = 1_048_575
"""The highest rate that a FLAC states (RFC 9639); speech below 1 kHz is none."""

MAX_VALUES_PER_S = 384_000
"""Samples of all channels together, for each second of the longest audio: eight channels at 48 kHz."""

UNKNOWN_FRAMES = 1 << 62
"""libsndfile gives 2^63 - 1 for a FLAC that was written to a pipe and states no length."""

PEAK = 16.0
"""Highest sample of a file on -1..1: 24 dB above full scale. Beyond it the numbers are on the scale of integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioLimits:
    """Limits on one recording, held against its header before it is decoded and against its samples meanwhile."""

    max_duration_s: float = MAX_DURATION_S
    """Seconds; ``MAX_STREAMED_S`` where it is decoded block by block and nothing of it is kept."""

    def header_fault(self, *, rate_hz: int, channels: int, num_frames: int) -> str:
        """In words, why a file with this header is not decoded; "" if it is.

        Args:
            num_frames: samples per channel that it states; ``UNKNOWN_FRAMES`` or more if it states none.
        """
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            return (
                f"has a sample rate of {rate_hz} Hz, which cannot be resampled to {SAMPLE_RATE_HZ} Hz: "
                f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can"
            )
        if num_frames >= UNKNOWN_FRAMES:
            return ""
        if num_frames > self.max_duration_s * rate_hz:
            return f"lasts {num_frames / rate_hz:.1f} s, more than {self.max_duration_s:g} s"
        if num_frames > self._max_frames(channels):
            return self.too_many_values(rate_hz, channels)
        return ""

    def fault_of(self, read: int, *, rate_hz: int, channels: int) -> str:
        """In words, why no more is decoded of a file of which so many samples per channel were; "" to go on."""
        if read > self.max_duration_s * rate_hz:
            return f"lasts more than {self.max_duration_s:g} s"
        return self.too_many_values(rate_hz, channels) if read > self._max_frames(channels) else ""

    def too_many_values(self, rate_hz: int, channels: int) -> str:
        """In words, that a file holds too many samples in all its channels."""
        most = self.max_duration_s * MAX_VALUES_PER_S
        return (
            f"has {channels} channels of {rate_hz} Hz, more than {most:.0f} samples together; write it anew with one "
            "channel, or at a lower rate"
        )

    def _max_frames(self, channels: int) -> float:
        return self.max_duration_s * MAX_VALUES_PER_S / max(1, channels)


def too_short(num_samples: int) -> str:
    """In words, that so few samples at 16 kHz are of no use."""
    return f"lasts {num_samples} samples at {SAMPLE_RATE_HZ} Hz, fewer than an encoder's first frame ({MIN_SAMPLES})"
