"""Any audio file to the FLAC that shards carry: 16 kHz, mono, 16 bit."""

import io
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from jaxtyping import Float, Float32, Float64, Int16

from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.clipping import is_clipped
from ccts_dist.shards.containers import missing_audio, mp3_samples, with_length

MIN_SAMPLES = 400
"""The first frame of HuBERT, wav2vec 2.0 and their kin spans 400 samples (25 ms); shorter audio gives no frame."""

MAX_DURATION_S = 600.0
"""Longer audio is not used, unless a builder is told another limit."""

_MAX_KERNEL = 10_000_000
"""Numbers in the resampling filter (80 MB); it grows with the rates over their common divisor."""

_UNKNOWN_FRAMES = 1 << 62
"""libsndfile says 2^63 - 1 for a FLAC that was written to a pipe and states no length."""

_BLOCK_FRAMES = 65_536

_MP3_SHARE = 0.98
"""An MP3's decoder may leave out its own delay, some thousand samples; a length guessed wrong is off by more."""

_FULL_SCALE = 32_768

NO_AUDIO = "holds no audio"
NOT_FINITE = "holds samples that are not finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Audio at 16 kHz, mono, as whole numbers of 16 bit."""

    whole: Int16[np.ndarray, " samples"]
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


def convert_audio(path: Path, *, max_duration_s: float) -> Converted | str:
    """The file's audio as a shard carries it, or in words why it cannot be used.

    Args:
        max_duration_s: longer audio is not used.
    """
    decoded = decode_audio(path, max_duration_s=max_duration_s)
    if isinstance(decoded, str):
        return decoded
    return Converted(
        flac=_encode_flac(decoded.whole),
        num_samples=len(decoded.whole),
        resampled=decoded.resampled,
        mixed_down=decoded.mixed_down,
        clipped=is_clipped(decoded.whole),
    )


def decode_audio(
    source: Path | io.BytesIO, *, max_duration_s: float, max_values_per_s: int | None = None
) -> Decoded | str:
    """The audio of a file or an opened file as a shard would carry it, or in words why it cannot be used.

    16 kHz mono 16 bit audio comes through bit by bit. Other rates are resampled (windowed sinc), several channels
    averaged, both in float64; what then lies beyond full scale is clipped.

    Args:
        max_duration_s: longer audio is not used.
        max_values_per_s: neither is audio with more samples a second in all its channels together: a small file of
            silence in many channels takes gigabytes when it is decoded. None for no limit.
    """
    try:
        with _opened(source) as opened:
            read = _read(opened, max_duration_s, max_values_per_s)
    except (OSError, soundfile.LibsndfileError) as error:
        return why_not_decoded(error)
    return read if isinstance(read, str) else _decoded(*read)


def why_not_decoded(error: OSError | soundfile.LibsndfileError) -> str:
    """In words, why a file could not be opened or decoded."""
    if isinstance(error, soundfile.LibsndfileError):
        return f"cannot be decoded ({error.error_string.strip().removeprefix('Error : ').rstrip('.')})"
    if isinstance(error, FileNotFoundError):
        return "the audio file is missing"
    return f"cannot be opened ({error.strerror})"


def _decoded(samples: Float64[np.ndarray, "samples channels"], rate: int) -> Decoded | str:
    if not np.isfinite(samples).all():
        return NOT_FINITE
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE_HZ:
        if not can_resample(rate):
            return cannot_resample(rate)
        mono = resample(mono, rate)
    if len(mono) < MIN_SAMPLES:
        return too_short(len(mono))
    return Decoded(whole=to_whole(mono), resampled=rate != SAMPLE_RATE_HZ, mixed_down=samples.shape[1] > 1)


def _read(
    opened: io.BufferedReader | io.BytesIO, max_duration_s: float, max_values_per_s: int | None
) -> tuple[Float64[np.ndarray, "samples channels"], int] | str:
    """All samples of an opened file and their rate, or in words why they are not all there."""
    missing, counted = missing_audio(opened), mp3_samples(opened)
    if missing:
        return missing
    with AnyLength(for_libsndfile(with_length(opened)), closefd=False) as file:
        rate, num_frames = file.samplerate, file.frames
        if max_values_per_s is not None and rate * file.channels > max_values_per_s:
            return f"has {file.channels} channels of {rate} Hz, more than {max_values_per_s} samples a second together"
        if max_duration_s * rate < num_frames < _UNKNOWN_FRAMES:
            return _too_long(num_frames, rate, max_duration_s)
        if num_frames < _UNKNOWN_FRAMES:
            samples = file.read(num_frames, dtype="float64", always_2d=True)
        else:
            samples = _read_to_end(file, limit=int(max_duration_s * rate))
            num_frames = len(samples)
    if num_frames > max_duration_s * rate:
        return f"lasts more than {max_duration_s:g} s"
    return why_incomplete(len(samples), num_frames, counted) or (samples, rate)


def why_incomplete(read: int, stated: int, counted: int) -> str:
    """In words, that a file's audio is not all there; "" if it is.

    Args:
        read: samples per channel that were found.
        stated: that its header says; ``_UNKNOWN_FRAMES`` or more for none.
        counted: that an MP3's frames hold which has no such header, else 0.
    """
    if read == 0 and not 0 < stated < _UNKNOWN_FRAMES:
        return NO_AUDIO
    if read < stated < _UNKNOWN_FRAMES:
        return f"is cut: {read} of {stated} samples"
    if read < _MP3_SHARE * counted:
        return f"states no length, and {read} of its {counted} samples are found; write it anew"
    return ""


def _read_to_end(file: soundfile.SoundFile, limit: int) -> Float64[np.ndarray, "samples channels"]:
    """The samples of a file that does not say how many there are; a block more than the limit at most."""
    blocks = [file.read(_BLOCK_FRAMES, dtype="float64", always_2d=True)]
    while len(blocks[-1]) and sum(map(len, blocks)) <= limit:
        blocks.append(file.read(_BLOCK_FRAMES, dtype="float64", always_2d=True))
    return np.concatenate(blocks)


def decode_samples(
    samples: Float[np.ndarray, " samples"] | Float[np.ndarray, "samples channels"],
    rate_hz: int = SAMPLE_RATE_HZ,
    *,
    max_duration_s: float,
) -> Decoded | str:
    """Samples on -1..1 as a shard would carry them, or in words why they cannot be used."""
    if not len(samples):
        return NO_AUDIO
    if len(samples) > max_duration_s * rate_hz:
        return _too_long(len(samples), rate_hz, max_duration_s)
    return _decoded(samples.astype(np.float64).reshape(len(samples), -1), rate_hz)


def to_wave(whole: Int16[np.ndarray, " samples"]) -> Float32[np.ndarray, " samples"]:
    """Samples on -1..1, as the loader gives them to a model."""
    return whole.astype(np.float32) / _FULL_SCALE


def flac_facts(flac: bytes) -> tuple[int, int]:
    """Sample rate and number of samples as a FLAC file's first block states them; (0, 0) when it is no FLAC."""
    if flac[:4] != b"fLaC" or len(flac) < 26:
        return 0, 0
    # STREAMINFO from byte 18: 20 bits rate, 3 channels, 5 depth, 36 bits number of samples (RFC 9639, section 8.2).
    packed = int.from_bytes(flac[18:26], "big")
    return packed >> 44, packed & ((1 << 36) - 1)


class _Memory(io.BytesIO):
    """Does not raise where a damaged header sends libsndfile: a callback's exception would be printed and lost."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(max(0, offset) if whence == os.SEEK_SET else offset, whence)


def for_libsndfile(opened: io.BufferedReader | io.BytesIO) -> int | _Memory:
    """The descriptor of a file, which libsndfile reads without the interpreter's lock; or a copy in memory."""
    if isinstance(opened, io.BytesIO):
        return _Memory(opened.getbuffer())
    os.lseek(opened.fileno(), 0, os.SEEK_SET)
    return opened.fileno()


class AnyLength(soundfile.SoundFile):
    """Reads on without seeking, which libsndfile cannot do in a FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


def _opened(source: Path | io.BytesIO) -> AbstractContextManager[io.BufferedReader | io.BytesIO]:
    return open(source, "rb") if isinstance(source, Path) else nullcontext(source)


def _too_long(num_samples: int, rate: int, max_duration_s: float) -> str:
    return f"lasts {num_samples / rate:.1f} s, more than {max_duration_s:g} s"


def too_short(num_samples: int) -> str:
    """In words, that so few samples at 16 kHz are of no use."""
    return f"lasts {num_samples} samples at {SAMPLE_RATE_HZ} Hz, fewer than an encoder's first frame ({MIN_SAMPLES})"


def cannot_resample(rate_hz: int) -> str:
    """In words, that audio of this rate is of no use."""
    return f"has a sample rate of {rate_hz} Hz, which cannot be resampled to {SAMPLE_RATE_HZ} Hz"


def can_resample(rate_hz: int) -> bool:
    """Whether audio of this rate can be brought to 16 kHz with a filter that fits into memory."""
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    return (rate_hz // divisor) * (SAMPLE_RATE_HZ // divisor) <= _MAX_KERNEL


def resample(mono: Float64[np.ndarray, " samples"], rate: int) -> Float64[np.ndarray, " resampled"]:
    """The same sound at 16 kHz (windowed sinc); ``rate`` is its own in Hz, one that ``can_resample``."""
    wave = torch.from_numpy(np.ascontiguousarray(mono))
    return torchaudio.functional.resample(wave, rate, SAMPLE_RATE_HZ).numpy()


def to_whole(mono: Float64[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
    """Samples on -1..1 as whole numbers of 16 bit; what lies beyond full scale is clipped."""
    return np.clip(np.rint(mono * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _encode_flac(whole: Int16[np.ndarray, " samples"]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, whole, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()
