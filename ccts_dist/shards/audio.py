"""Any audio file to the FLAC that shards carry: 16 kHz, mono, 16 bit."""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from jaxtyping import Float64

from ccts_dist.records import SAMPLE_RATE_HZ

MIN_SAMPLES = 400
"""The first frame of HuBERT, wav2vec 2.0 and their kin spans 400 samples (25 ms); shorter audio gives no frame."""

_MAX_KERNEL = 10_000_000
"""Numbers in the resampling filter (80 MB); it grows with the rates over their common divisor."""

_FULL_SCALE = 32_768


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """Audio as a shard carries it."""

    flac: bytes
    num_samples: int
    resampled: bool
    mixed_down: bool


def convert_audio(path: Path, *, max_duration_s: float) -> Converted | str:
    """The file's audio as a shard carries it, or in words why it cannot be used.

    16 kHz mono 16 bit audio comes through bit by bit. Other rates are resampled (windowed sinc), several channels
    averaged, both in float64; what then lies beyond full scale is clipped.

    Args:
        max_duration_s: longer audio is not used.
    """
    try:
        with open(path, "rb") as opened, soundfile.SoundFile(opened) as file:
            rate, num_frames = file.samplerate, file.frames
            if num_frames == 0:
                return "holds no audio"
            if num_frames > max_duration_s * rate:
                return f"lasts {num_frames / rate:.1f} s, more than {max_duration_s:g} s"
            samples = file.read(dtype="float64", always_2d=True)
    except FileNotFoundError:
        return "the audio file is missing"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    except soundfile.LibsndfileError as error:
        return f"cannot be decoded ({error.error_string.strip().rstrip('.')})"
    except TypeError:
        return "cannot be decoded (headerless audio)"  # soundfile asks for rate and channels of a file named .raw
    if len(samples) < num_frames:
        return f"is cut: {len(samples)} of {num_frames} samples"
    if not np.isfinite(samples).all():
        return "holds samples that are not finite"
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE_HZ:
        divisor = math.gcd(rate, SAMPLE_RATE_HZ)
        if (rate // divisor) * (SAMPLE_RATE_HZ // divisor) > _MAX_KERNEL:
            return f"has a sample rate of {rate} Hz, which cannot be resampled to {SAMPLE_RATE_HZ} Hz"
        mono = _resample(mono, rate)
    if len(mono) < MIN_SAMPLES:
        return f"lasts {len(mono)} samples at {SAMPLE_RATE_HZ} Hz, fewer than an encoder's first frame ({MIN_SAMPLES})"
    return Converted(
        flac=_encode_flac(mono),
        num_samples=len(mono),
        resampled=rate != SAMPLE_RATE_HZ,
        mixed_down=samples.shape[1] > 1,
    )


def flac_facts(flac: bytes) -> tuple[int, int]:
    """Sample rate and number of samples as a FLAC file's first block states them; (0, 0) when it is no FLAC."""
    if flac[:4] != b"fLaC" or len(flac) < 26:
        return 0, 0
    # STREAMINFO from byte 18: 20 bits rate, 3 channels, 5 depth, 36 bits number of samples (RFC 9639, section 8.2).
    packed = int.from_bytes(flac[18:26], "big")
    return packed >> 44, packed & ((1 << 36) - 1)


def _resample(mono: Float64[np.ndarray, " samples"], rate: int) -> Float64[np.ndarray, " resampled"]:
    wave = torch.from_numpy(np.ascontiguousarray(mono))
    return torchaudio.functional.resample(wave, rate, SAMPLE_RATE_HZ).numpy()


def _encode_flac(mono: Float64[np.ndarray, " samples"]) -> bytes:
    whole = np.clip(np.rint(mono * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, whole, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()
