"""Opening audio that others made, and reading it as one channel, within limits, block by block."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float64

from ccts_dist.audio.limits import MAX_DURATION_S, UNKNOWN_FRAMES, AudioLimits
from ccts_dist.audio.mix_down import MixDown, UnusableAudioError
from ccts_dist.audio.mp3 import is_mp3, look_at_mp3
from ccts_dist.audio.truncation import audio_start, length_patch, missing_audio
from ccts_dist.audio.views import Opened, View, read_at

NO_AUDIO = "holds no audio"

_BLOCK_VALUES = 1 << 17
"""Samples of all channels that are decoded at a time: 1 MB in float64. What precedes a damaged block is still given."""

_MP3_SHARE = 0.98
"""An MP3's decoder may leave out its own delay, some thousand samples; a length guessed wrong is off by more."""

_KINDS = {
    stat.S_ISFIFO: "is a pipe",
    stat.S_ISSOCK: "is a socket",
    stat.S_ISCHR: "is a device",
    stat.S_ISBLK: "is a device",
}

_OTHER_FORMATS = (
    (4, b"ftyp", "MPEG-4 or QuickTime"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"#!AMR", "AMR"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
)
"""Offset and bytes of formats that people record in and libsndfile does not read."""


class AudioFile:
    """A file that a decoder has opened.

    Args:
        file: the decoder.
        counted: samples per channel that an MP3's frames hold which does not state their number, else 0.
        limits: on what is decoded.
    """

    def __init__(self, file: soundfile.SoundFile, counted: int, limits: AudioLimits) -> None:
        self._file, self._counted, self._limits = file, counted, limits
        self.rate_hz, self.channels, self.num_frames = file.samplerate, file.channels, file.frames

    def blocks(self) -> Iterator[Float64[np.ndarray, " _samples"]]:
        """The mean of the channels from the beginning to the end.

        Raises:
            UnusableAudioError: it is cut, too long, or its samples cannot be used; after the blocks before that.
            soundfile.LibsndfileError: it is damaged.
        """
        read, num_frames = 0, self.num_frames
        mix, block = self._mix_and_block()
        while read < num_frames:
            samples = self._file.read(min(block, num_frames - read), dtype="float64", always_2d=True)
            if not len(samples):
                break
            read += len(samples)
            fault = self._limits.fault_of(read, rate_hz=self.rate_hz, channels=self.channels)
            if fault:
                raise UnusableAudioError(fault)
            yield mix.push(samples)
        fault = _why_incomplete(read, num_frames, self._counted)
        if fault:
            raise UnusableAudioError(fault)
        mix.end()

    def piece(self, start: int, num_frames: int) -> Float64[np.ndarray, " samples"]:
        """The mean of the channels of so many samples from ``start`` on, or of as many as there are.

        Raises:
            UnusableAudioError: its samples cannot be used.
            soundfile.LibsndfileError: it is damaged, or too short.
        """
        self._file.seek(start)
        mix, block = self._mix_and_block()
        found, read = [np.zeros(0)], 0
        while read < num_frames:
            samples = self._file.read(min(block, num_frames - read), dtype="float64", always_2d=True)
            if not len(samples):
                break
            read += len(samples)
            found.append(mix.push(samples))
        mix.end()
        return np.concatenate(found)

    def _mix_and_block(self) -> tuple[MixDown, int]:
        """A new mix, and the frames that are decoded at a time."""
        mix = MixDown(self.rate_hz, self.channels)
        frames = max(1, _BLOCK_VALUES // max(1, self.channels))
        return mix, frames // mix.stretch * mix.stretch or frames


@contextmanager
def open_audio(source: Path | io.BytesIO, limits: AudioLimits) -> Iterator[AudioFile]:
    """A file, or an opened one, ready to be decoded.

    Raises:
        UnusableAudioError: it is no file, its structure states that audio is missing, or it exceeds the limits.
        OSError: it cannot be opened.
        soundfile.LibsndfileError: it cannot be decoded.
    """
    with _opened(source) as opened:
        start = audio_start(opened)
        view = View(opened, start=start) if start else opened
        fault = missing_audio(view)
        if fault:
            raise UnusableAudioError(fault)
        counted = look_at_mp3(view).samples if is_mp3(read_at(view, 0, 16)) else 0
        try:
            decoder = _AnyLength(_for_libsndfile(opened, start, view), closefd=False)
        except soundfile.LibsndfileError as error:
            raise UnusableAudioError(_other_format(view) or why_not_decoded(error)) from error
        with decoder as file:
            fault = limits.header_fault(rate_hz=file.samplerate, channels=file.channels, num_frames=file.frames)
            if fault:
                raise UnusableAudioError(fault if file.frames else NO_AUDIO)
            yield AudioFile(file, counted, limits)


def stated_seconds(path: Path) -> float:
    """Duration that a file's header states, at most the limit, which is also that of one without; 0 if unreadable."""
    try:
        with open_audio(path, AudioLimits()) as file:
            return min(file.num_frames / file.rate_hz, MAX_DURATION_S)
    except UNREADABLE:
        return 0.0


def why_not_decoded(error: OSError | soundfile.LibsndfileError | UnusableAudioError) -> str:
    """In words, why a file could not be opened or decoded."""
    if isinstance(error, UnusableAudioError):
        return str(error)
    if isinstance(error, soundfile.LibsndfileError):
        return f"cannot be decoded ({error.error_string.strip().removeprefix('Error : ').rstrip('.')})"
    if isinstance(error, FileNotFoundError):
        return "the audio file is missing"
    return f"cannot be opened ({error.strerror})"


UNREADABLE = (OSError, soundfile.LibsndfileError, UnusableAudioError)
"""Raised by a file that cannot be used."""


class _AnyLength(soundfile.SoundFile):
    """Reads on without seeking, which libsndfile cannot do in a FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[io.BufferedReader | io.BytesIO]:
    """The opened file; whatever is no file is refused before it is read, and without waiting for it."""
    if not isinstance(source, Path):
        with nullcontext(source) as opened:
            yield opened
        return
    if "\0" in str(source):
        raise FileNotFoundError  # no file has such a name
    _check_kind(os.stat(source).st_mode)  # a device may act on being opened
    handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as opened:
        _check_kind(os.fstat(handle).st_mode)
        yield opened


def _check_kind(mode: int) -> None:
    for is_kind, words in _KINDS.items():
        if is_kind(mode):
            raise UnusableAudioError(f"{words}, and audio is read from files; write it to one and name that")


def _for_libsndfile(
    opened: io.BufferedReader | io.BytesIO, start: int, view: Opened
) -> Any:  # an int or a View; soundfile's own types know no view
    """The descriptor of a file, which libsndfile reads without the interpreter's lock; or a view of it."""
    patches = length_patch(view)
    if isinstance(opened, io.BytesIO) or start or patches:
        return View(opened, start=start, patches=patches)
    os.lseek(opened.fileno(), 0, os.SEEK_SET)
    return opened.fileno()


def _other_format(file: Opened) -> str:
    """In words, that a file is of a known format which cannot be decoded; "" for others."""
    for at, magic, name in _OTHER_FORMATS:
        if read_at(file, at, len(magic)) == magic:
            return f"is {name} audio, which cannot be decoded; convert it (ffmpeg -i FILE NEW.flac)"
    return ""


def _why_incomplete(read: int, stated: int, counted: int) -> str:
    """In words, that a file's audio is not all there; "" if it is.

    Args:
        read: samples per channel that were found.
        stated: that its header states; ``UNKNOWN_FRAMES`` or more for none.
        counted: that an MP3's frames hold which has no such header, else 0.
    """
    if read == 0 and not 0 < stated < UNKNOWN_FRAMES:
        return NO_AUDIO
    if read < stated < UNKNOWN_FRAMES:
        return f"is cut: {read} of {stated} samples"
    if read < _MP3_SHARE * counted:
        return f"states no length, and {read} of its {counted} samples are found; write it anew"
    return ""
