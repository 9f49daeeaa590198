"""Augmentation of the audio of training utterances: speed, reverberation, noise.

Every draw is a pure function of (seed, epoch, key) and of what it is for, so that an utterance sounds the same on any
rank, in any thread and after a resume, and turning one thing on leaves the others as they were. Validation, test and
the teacher's pass never come by here.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import torch
import torchaudio
from jaxtyping import Float, Float32, Float64

from ccts_dist.audio.noise_bank import NoiseBank
from ccts_dist.config import AugmentConfig
from ccts_dist.errors import ConfigError
from ccts_dist.process.seeds import derive_seed

GENERATED = ("white", "pink", "babble")
"""Noises that need no files."""

TALKERS = 4
"""Number of voices of babble."""

MAX_RESPONSE_S = 30.0
"""An impulse response that is longer is a recording of something else."""

Talkers = Callable[[int], Iterator[Float32[np.ndarray, " samples"]]]
"""Audio of some other utterances, at most so many, chosen by a seed."""


class Augmenter:
    """Changes utterances as ``[augment]`` states. Can be used by several threads.

    Args:
        config: the table.
        seed: of the run.

    Raises:
        ConfigError: a folder that is not there, or files in it that cannot be used.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._speeds = [Fraction(round(100 * factor), 100) for factor in config.speed]
        self._noises = [name if name in GENERATED else _noise_folder(name) for name in dict.fromkeys(config.noises)]
        responses = [
            NoiseBank(folder, key="augment.impulse_responses", max_duration_s=MAX_RESPONSE_S)
            for folder in dict.fromkeys(config.impulse_responses)
        ]
        # Each file is as likely as another, however they lie in folders.
        self._rooms = [(folder, number) for folder in responses for number in range(len(folder))]
        sources = [source if isinstance(source, str) else source.digest for source in (*self._noises, *responses)]
        self.digest = hashlib.sha256(repr(sources).encode()).hexdigest() if sources else ""
        """Digest of what the folders hold, wherever they are; "" without any source of sound."""

    @property
    def slowest(self) -> Fraction:
        """The lowest factor of speed."""
        return min(self._speeds, default=Fraction(1))

    def speed(self, epoch: int, key: str) -> Fraction:
        """The factor by which an utterance is sped up."""
        if not self._speeds:
            return Fraction(1)
        return self._speeds[int(self._draw(epoch, key, "speed") * len(self._speeds))]

    def change(
        self, wave: Float64[np.ndarray, " samples"], epoch: int, key: str, talkers: Talkers
    ) -> Float64[np.ndarray, " samples"]:
        """The utterance in a drawn room and in a drawn noise, if it is its turn; as long as before.

        Samples may then lie beyond -1..1: clipping them would change the signal-to-noise ratio.

        Raises:
            ConfigError: a file that was sound at first is not any more.
        """
        config = self._config
        if self._rooms and self._draw(epoch, key, "reverb") < config.reverb_probability:
            wave = reverberate(wave, self._response(epoch, key))
        if self._noises and self._draw(epoch, key, "noise") < config.noise_probability:
            low, high = config.snr_db
            snr_db = low + (high - low) * self._draw(epoch, key, "snr")
            wave = mix(wave, self._noise(len(wave), epoch, key, talkers), snr_db)
        return wave

    def _draw(self, epoch: int, key: str, what: str) -> float:
        """Evenly from 0 to 1, which is not reached."""
        return (self._seed_for(epoch, key, what) >> 10) / 2**53

    def _seed_for(self, epoch: int, key: str, what: str) -> int:
        return derive_seed("augment", self._seed, epoch, key, what)

    def _response(self, epoch: int, key: str) -> Float64[np.ndarray, " taps"]:
        folder, number = self._rooms[int(self._draw(epoch, key, "room") * len(self._rooms))]
        response = folder.whole(number)
        if not response.any():
            raise ConfigError(
                f"augment.impulse_responses: {folder.path(number)} is silent. Remove it, and start again."
            )
        return response

    def _noise(self, num_samples: int, epoch: int, key: str, talkers: Talkers) -> Float64[np.ndarray, " samples"]:
        source = self._noises[int(self._draw(epoch, key, "source") * len(self._noises))]
        seed = self._seed_for(epoch, key, "samples")
        if isinstance(source, NoiseBank):
            number = int(self._draw(epoch, key, "file") * len(source))
            return source.piece(number, self._draw(epoch, key, "place"), num_samples)
        if source == "white":
            return white_noise(num_samples, seed)
        return pink_noise(num_samples, seed) if source == "pink" else babble(num_samples, talkers(seed))


def at_speed(wave: Float[np.ndarray, " samples"], speed: Fraction) -> Float64[np.ndarray, " resampled"]:
    """The same sound played faster (above 1) or slower, as a tape would be: the pitch goes along.

    Of n samples ``length_at_speed`` come to be (windowed sinc).
    """
    tape = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float64))
    return torchaudio.functional.resample(tape, speed.numerator, speed.denominator).numpy()


def length_at_speed(num_samples: int, speed: Fraction) -> int:
    """Samples that so many become: n / speed, rounded up."""
    return -(-num_samples * speed.denominator // speed.numerator)


def mix(
    wave: Float64[np.ndarray, " samples"], noise: Float64[np.ndarray, " samples"], snr_db: float
) -> Float64[np.ndarray, " samples"]:
    """The sum of both, the noise brought to that signal-to-noise ratio: 10 log10 of the quotient of mean powers.

    Silence stays silence, and silent noise adds nothing.
    """
    power, noise_power = float(np.mean(wave**2)), float(np.mean(noise**2))
    if power == 0 or noise_power == 0:
        return wave
    return wave + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))


def reverberate(
    wave: Float64[np.ndarray, " samples"], response: Float64[np.ndarray, " taps"]
) -> Float64[np.ndarray, " samples"]:
    """The wave convolved with a room's impulse response, at its length and its energy.

    The response's largest tap, the direct sound, comes without delay, so that speech stays where it was.
    """
    direct = int(np.argmax(np.abs(response)))
    response = response[: direct + len(wave)]  # later taps reach no sample
    size = 1 << (len(wave) + len(response) - 2).bit_length()
    product = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(product, size)[direct : direct + len(wave)]
    power, wet_power = float(np.mean(wave**2)), float(np.mean(wet**2))
    return wave if wet_power == 0 else wet * np.sqrt(power / wet_power)


def white_noise(num_samples: int, seed: int) -> Float64[np.ndarray, " samples"]:
    """Independent normal samples of standard deviation 1.

    By Box and Muller (1958) on the raw output of PCG64, which numpy keeps for ever.
    """
    half = -(-num_samples // 2)
    draws = (np.random.PCG64(seed).random_raw(2 * half) >> np.uint64(11)) / 2**53
    radius, angle = np.sqrt(-2 * np.log1p(-draws[:half])), 2 * np.pi * draws[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:num_samples]


def pink_noise(num_samples: int, seed: int) -> Float64[np.ndarray, " samples"]:
    """Noise of equal power in every octave: its power falls as one over the frequency."""
    size = 1 << (num_samples - 1).bit_length()
    spectrum = np.fft.rfft(white_noise(size, seed))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, size)[:num_samples]


def babble(num_samples: int, talkers: Iterator[Float32[np.ndarray, " samples"]]) -> Float64[np.ndarray, " samples"]:
    """Several utterances at once, equally loud; shorter ones are repeated. Silence without any."""
    total = np.zeros(num_samples)
    for wave in talkers:
        own = np.resize(wave.astype(np.float64), num_samples)
        power = float(np.mean(own**2))
        if power > 0:
            total += own / np.sqrt(power)
    return total


def _noise_folder(name: str) -> NoiseBank:
    try:
        return NoiseBank(name, key="augment.noises")
    except ConfigError as error:
        near = difflib.get_close_matches(name, GENERATED, n=1)
        if near and not ("/" in name or "\\" in name):
            raise ConfigError(f"{error} Or did you mean the generated noise {near[0]!r}?") from error
        raise
