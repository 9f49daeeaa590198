"""Folders of audio that training mixes into utterances: noises, impulse responses. Listed and opened once."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from ccts_dist.audio.decode import NO_AUDIO, UNREADABLE, open_audio, why_not_decoded
from ccts_dist.audio.limits import UNKNOWN_FRAMES, AudioLimits
from ccts_dist.audio.resampling import resample
from ccts_dist.errors import ConfigError
from ccts_dist.records import SAMPLE_RATE_HZ

SUFFIXES = (
    ".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph", ".w64",
    ".wav",
)  # fmt: skip
"""File name endings that libsndfile reads; other files, such as a corpus's README, are passed over."""

_LIMITS = AudioLimits(max_duration_s=math.inf)
"""Pieces are read of files of any duration."""

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class _Sound:
    path: Path
    num_frames: int
    """At its own rate."""

    rate_hz: int


class NoiseBank:
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
        """Digest of names, lengths and rates, not of where the folder is."""

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
        """Path of one file."""
        return self._sounds[number].path

    def _read(self, sound: _Sound, start: int, num_frames: int) -> Float64[np.ndarray, " samples"]:
        try:
            with open_audio(sound.path, _LIMITS) as file:
                rate, mono = file.rate_hz, file.piece(start, num_frames)
        except UNREADABLE as error:
            raise self._damaged(sound.path, why_not_decoded(error)) from error
        # The length of an MP3 may be a guess.
        least = 1 if sound.path.suffix.lower() == ".mp3" else num_frames
        if len(mono) < least or rate != sound.rate_hz:
            raise self._damaged(sound.path, f"{num_frames} sound samples were to be there from {start} on")
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
    """The header of an audio file, or in words why the file cannot be used."""
    limits = AudioLimits(max_duration_s=max_duration_s) if max_duration_s else _LIMITS
    try:
        with open_audio(path, limits) as file:
            facts = _Sound(path, file.num_frames, file.rate_hz)
    except UNREADABLE as error:
        return why_not_decoded(error)
    if facts.num_frames <= 0:
        return NO_AUDIO
    return "states no length; write it anew" if facts.num_frames >= UNKNOWN_FRAMES else facts
