"""Audio for measuring: noise shaped like speech, so that FLAC compresses and decodes it as it does speech."""

import io

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16_000


def durations(count: int, seed: int = 0) -> np.ndarray:
    """Seconds of ``count`` utterances, spread as in MSP-Podcast: around 5 s, none below 2.5 or above 11."""
    drawn = np.random.default_rng([seed, 1]).lognormal(np.log(5.0), 0.45, count * 2)
    return drawn[(drawn >= 2.5) & (drawn <= 11.0)][:count]


def utterance(seconds: float, number: int) -> np.ndarray:
    """One utterance as int16: harmonics of a moving pitch and breath, formants, syllables, pauses, a noisy room."""
    rng = np.random.default_rng([number, 2])
    samples = int(seconds * SAMPLE_RATE_HZ)
    time = np.arange(samples) / SAMPLE_RATE_HZ
    pitch = rng.uniform(90, 230) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * time))
    phase = np.cumsum(pitch) / SAMPLE_RATE_HZ
    excitation = 2 * (phase % 1) - 1 + 0.15 * rng.standard_normal(samples)
    spectrum = np.fft.rfft(excitation)
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    shape = 0.02 / (1 + (frequency / 3000) ** 2)
    for centre, width in ((rng.uniform(300, 800), 120), (rng.uniform(900, 2200), 180), (rng.uniform(2300, 3000), 250)):
        shape = shape + 1 / (1 + ((frequency - centre) / width) ** 2)
    voice = np.fft.irfft(spectrum * shape, samples)
    rate = rng.uniform(1.6, 2.6)
    syllables = np.clip(np.sin(2 * np.pi * rate * time + rng.uniform(0, 6)) + 0.5 * np.sin(0.7 * time), 0, 1) ** 0.7
    voice *= syllables * rng.uniform(2000, 6000) / (voice.std() + 1e-9)
    room = rng.standard_normal(samples) * rng.uniform(6, 32)
    return np.clip(np.rint(voice + room), -32768, 32767).astype(np.int16)


def flac(samples: np.ndarray) -> bytes:
    """FLAC, 16 bit."""
    out = io.BytesIO()
    soundfile.write(out, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return out.getvalue()
