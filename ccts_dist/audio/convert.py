"""Any audio file to the FLAC that shards carry: 16 kHz, mono, 16 bit."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float, Float32, Float64, Int16

from ccts_dist.audio.clipping import is_clipped
from ccts_dist.audio.decode import NO_AUDIO, UNREADABLE, open_audio, why_not_decoded
from ccts_dist.audio.limits import MIN_SAMPLES, AudioLimits, too_short
from ccts_dist.audio.mix_down import MixDown, UnusableAudioError
from ccts_dist.audio.resampling import resampled
from ccts_dist.records import SAMPLE_RATE_HZ

SEGMENT_SLACK_S = 0.5
"""Intervals of people who marked them by hand may end a little after the recording."""

_FULL_SCALE = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Audio at 16 kHz, mono, as whole numbers of 16 bit."""

    pcm16: Int16[np.ndarray, " samples"]
    resampled: bool
    mixed_down: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """Audio as a shard carries it."""

    flac: bytes
    num_samples: int
    resampled: bool
    mixed_down: bool
    clipped: bool
    """See ``is_clipped``."""


def convert_audio(
    path: Path, *, max_duration_s: float, segment_s: tuple[float, float] | None = None
) -> Converted | str:
    """The file's audio as a shard carries it, or in words why it cannot be used.

    Args:
        max_duration_s: longer audio is not used.
        segment_s: beginning and end of the part that is taken; None for the whole file.
    """
    decoded = decode_part(path, segment_s, max_duration_s=max_duration_s)
    if isinstance(decoded, str):
        return decoded
    return Converted(
        flac=_encode_flac(decoded.pcm16),
        num_samples=len(decoded.pcm16),
        resampled=decoded.resampled,
        mixed_down=decoded.mixed_down,
        clipped=is_clipped(decoded.pcm16),
    )


def decode_part(path: Path, segment_s: tuple[float, float] | None, *, max_duration_s: float) -> Decoded | str:
    """Like ``decode_segment``, or ``decode_audio`` of the whole file where there is no segment."""
    if segment_s is None:
        return decode_audio(path, max_duration_s=max_duration_s)
    return decode_segment(path, segment_s, max_duration_s=max_duration_s)


def decode_audio(source: Path | io.BytesIO, *, max_duration_s: float) -> Decoded | str:
    """The audio of a file or an opened file as a shard would carry it, or in words why it cannot be used.

    16 kHz mono 16 bit audio comes through bit by bit. Other rates are resampled (windowed sinc), several channels
    averaged, both in float64; what then lies beyond full scale is clipped. Memory is bounded by ``max_duration_s``,
    whatever the file is.

    Args:
        max_duration_s: longer audio is not used; nor are more samples in all channels than ``AudioLimits`` allows.
    """
    try:
        with open_audio(source, AudioLimits(max_duration_s=max_duration_s)) as file:
            whole = [to_int16(block) for block in resampled(file.blocks(), file.rate_hz)]
            return _decoded(whole, file.rate_hz, file.channels)
    except UNREADABLE as error:
        return why_not_decoded(error)


def decode_segment(path: Path, segment_s: tuple[float, float], *, max_duration_s: float) -> Decoded | str:
    """A part of a file as a shard would carry it, or in words why it cannot be used; nothing else is decoded.

    Args:
        segment_s: beginning and end; an end up to ``SEGMENT_SLACK_S`` after that of the file is taken for the file's.
        max_duration_s: longer parts are not used, whatever the file lasts.
    """
    duration_s = segment_s[1] - segment_s[0]
    if duration_s > max_duration_s:
        return f"lasts {duration_s:.1f} s, more than {max_duration_s:g} s"
    try:
        with open_audio(path, AudioLimits(max_duration_s=math.inf)) as file:
            start, end = (round(second * file.rate_hz) for second in segment_s)
            if start >= file.num_frames or end > file.num_frames + SEGMENT_SLACK_S * file.rate_hz:
                ends = f"its file ends at {file.num_frames / file.rate_hz:.2f} s"
                return f"lasts from {segment_s[0]:.2f} to {segment_s[1]:.2f} s, and {ends}"
            piece = file.piece(start, min(end, file.num_frames) - start)
            whole = [to_int16(block) for block in resampled([piece], file.rate_hz)]
            return _decoded(whole, file.rate_hz, file.channels)
    except UNREADABLE as error:
        return why_not_decoded(error)


def _decoded(blocks: list[Int16[np.ndarray, " _samples"]], rate_hz: int, channels: int) -> Decoded:
    whole = blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.int16), *blocks])
    if len(whole) < MIN_SAMPLES:
        raise UnusableAudioError(too_short(len(whole)))
    return Decoded(pcm16=whole, resampled=rate_hz != SAMPLE_RATE_HZ, mixed_down=channels > 1)


def decode_samples(
    samples: Float[np.ndarray, " samples"] | Float[np.ndarray, "samples channels"],
    rate_hz: int = SAMPLE_RATE_HZ,
    *,
    max_duration_s: float,
) -> Decoded | str:
    """Samples on -1..1 as a shard would carry them, or in words why they cannot be used."""
    if not len(samples):
        return NO_AUDIO
    wide = samples.astype(np.float64).reshape(len(samples), -1)
    limits, mix = AudioLimits(max_duration_s=max_duration_s), MixDown(rate_hz, wide.shape[1])
    fault = limits.header_fault(rate_hz=rate_hz, channels=wide.shape[1], num_frames=len(wide))
    if fault:
        return fault
    try:
        mono = mix.push(wide)
        mix.end()
        return _decoded([to_int16(block) for block in resampled([mono], rate_hz)], rate_hz, wide.shape[1])
    except UnusableAudioError as error:
        return str(error)


def to_float32(whole: Int16[np.ndarray, " samples"]) -> Float32[np.ndarray, " samples"]:
    """Samples on -1..1, as the loader gives them to a model."""
    return whole.astype(np.float32) / _FULL_SCALE


def flac_facts(flac: bytes) -> tuple[int, int]:
    """Sample rate and number of samples as a FLAC file's first block states them; (0, 0) when it is no FLAC."""
    if flac[:4] != b"fLaC" or len(flac) < 26:
        return 0, 0
    # STREAMINFO from byte 18: 20 bits rate, 3 channels, 5 depth, 36 bits number of samples (RFC 9639, section 8.2).
    packed = int.from_bytes(flac[18:26], "big")
    return packed >> 44, packed & ((1 << 36) - 1)


def to_int16(mono: Float64[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
    """Samples on -1..1 as whole numbers of 16 bit; what lies beyond full scale is clipped."""
    return np.clip(np.rint(mono * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _encode_flac(whole: Int16[np.ndarray, " samples"]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, whole, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()
