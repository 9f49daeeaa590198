"""Folders of audio that training mixes into utterances: noises, impulse responses. Listed and opened once."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float64

from ccts_dist.errors import ConfigError
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.audio import can_resample, resample
from ccts_dist.shards.containers import missing_audio

SUFFIXES = (
    ".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".w64",
    ".wav",
)  # fmt: skip
"""What libsndfile reads; other files, such as a corpus's README, are passed over."""

_UNKNOWN_FRAMES = 1 << 62
"""libsndfile says 2^63 - 1 for a FLAC that states no length."""

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class _Sound:
    path: Path
    num_frames: int
    """At its own rate."""

    rate_hz: int


class SoundFolder:
    """The audio files of a folder and its sub-folders, read in pieces. Can be used by several threads.

    Args:
        root: the folder.
        key: of the run file, for errors.
        max_duration_s: longer files are refused; 0 for no such limit.

    Raises:
        ConfigError: no such folder, no audio in it, or files that cannot be used, the first of them by name.
    """

    def __init__(self, root: str | Path, *, key: str, max_duration_s: float = 0.0) -> None:
        self.root, self._key = Path(root), key
        paths = list(_audio_files(self.root, key))
        opened = [_opened(path, max_duration_s) for path in paths]
        bad = [f"{path}: {one}" for path, one in zip(paths, opened, strict=True) if isinstance(one, str)]
        if bad:
            more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
            raise ConfigError(
                f"{key} = {str(root)!r}: {len(bad)} of {len(paths)} files cannot be used: "
                f"{'; '.join(bad[:_MOST_NAMED])}{more}. Mend or remove them."
            )
        self._sounds = [one for one in opened if not isinstance(one, str)]
        facts = [(str(one.path.relative_to(self.root)), one.num_frames, one.rate_hz) for one in self._sounds]
        self.digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        """Of names, lengths and rates, not of where the folder is."""

    def __len__(self) -> int:
        return len(self._sounds)

    def piece(self, number: int, place: float, num_samples: int) -> Float64[np.ndarray, " samples"]:
        """So many samples of one file at 16 kHz, its channels averaged; a shorter file is repeated.

        Args:
            number: which file, counted from 0.
            place: where the piece lies, from 0 for the file's beginning to 1, not reached, for its end.
            num_samples: of the piece.

        Raises:
            ConfigError: the file has changed or is damaged.
        """
        sound = self._sounds[number]
        wanted = -(-num_samples * sound.rate_hz // SAMPLE_RATE_HZ)
        left = sound.num_frames - wanted
        start = int(place * (left + 1)) if left > 0 else 0
        wave = self._read(sound, start, min(wanted, sound.num_frames))
        return np.resize(wave, num_samples)

    def whole(self, number: int) -> Float64[np.ndarray, " samples"]:
        """One file at 16 kHz, its channels averaged.

        Raises:
            ConfigError: the file has changed or is damaged.
        """
        sound = self._sounds[number]
        return self._read(sound, 0, sound.num_frames)

    def path(self, number: int) -> Path:
        """Of one file."""
        return self._sounds[number].path

    def _read(self, sound: _Sound, start: int, num_frames: int) -> Float64[np.ndarray, " samples"]:
        try:
            samples, rate = soundfile.read(sound.path, frames=num_frames, start=start, dtype="float64", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as error:
            raise self._damaged(sound.path, str(error)) from error
        # The length of an MP3 may be a guess.
        least = 1 if sound.path.suffix.lower() == ".mp3" else num_frames
        if len(samples) < least or rate != sound.rate_hz or not np.isfinite(samples).all():
            raise self._damaged(sound.path, f"{num_frames} sound samples were to be there from {start} on")
        mono = samples.mean(axis=1)
        return mono if rate == SAMPLE_RATE_HZ else resample(mono, rate)

    def _damaged(self, path: Path, reason: str) -> ConfigError:
        reason = " ".join(reason.split())
        return ConfigError(f"{self._key}: {path} cannot be read: {reason}. Mend or remove it, and start again.")


def _audio_files(root: Path, key: str) -> Iterator[Path]:
    if not root.is_dir():
        raise ConfigError(f"{key} = {str(root)!r}: no such folder. Name a folder of audio files.")
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise ConfigError(f"{key} = {str(root)!r}: holds no audio files ({' '.join(SUFFIXES)}). Name another.")
    yield from found


def _opened(path: Path, max_duration_s: float) -> _Sound | str:
    """What a file's header says, or in words why it cannot be used."""
    try:
        with path.open("rb") as file:
            missing = missing_audio(file)
        if missing:
            return missing
        facts = soundfile.info(str(path))
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    except soundfile.LibsndfileError as error:
        return f"cannot be decoded ({error.error_string.strip().removeprefix('Error : ').rstrip('.')})"
    if facts.frames <= 0:
        return "holds no audio"
    if facts.frames >= _UNKNOWN_FRAMES:
        return "states no length; write it anew"
    if not can_resample(facts.samplerate):
        return f"has a sample rate of {facts.samplerate} Hz, which cannot be resampled to {SAMPLE_RATE_HZ} Hz"
    if 0 < max_duration_s < facts.frames / facts.samplerate:
        return f"lasts {facts.frames / facts.samplerate:.1f} s, more than {max_duration_s:g} s"
    return _Sound(path, facts.frames, facts.samplerate)
