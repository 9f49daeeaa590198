"""Finding recordings: files, folders, and what libsndfile reads in them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.audio.convert import Decoded, decode_audio
from ccts_dist.errors import ConfigError
from ccts_dist.inference.recordings import SUFFIXES, Unreadable, find_recordings, shown

# As people name files of a format, where that is not the format's own name.
_SPELLINGS = {"SVX": "8svx", "MAT4": "mat", "MAT5": "mat", "MPC2K": "mpc", "NIST": "sph", "WAVEX": "wav", "IRCAM": "sf"}
_NOT_IN_ONE_FILE = {"RAW", "SD2"}  # raw samples state no rate; SD2 has its header in a resource fork


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_are_searched_below_in_order_and_junk_is_passed_over(tmp_path: Path) -> None:
    wanted = [tmp_path / "x" / name for name in ("b.WAV", "c.flac", "d/a.mp3", "d/e/f.opus")]
    junk = [tmp_path / "x" / name for name in ("._b.WAV", "notes.txt", ".cache/g.wav", "d/.h.wav", "i.wav.part")]
    _touch(*wanted, *junk)
    single = tmp_path / "samples.bin"
    found, empty = find_recordings([str(single), str(tmp_path / "x"), str(tmp_path / "absent.wav")])
    assert found == [single, *wanted, tmp_path / "absent.wav"]
    assert empty == []


def test_links_to_folders_are_not_followed_and_end_no_search(tmp_path: Path) -> None:
    _touch(tmp_path / "x" / "a.wav")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "b.wav").symlink_to(tmp_path / "x" / "a.wav")
    assert find_recordings([str(tmp_path / "x")])[0] == [tmp_path / "x" / "a.wav", tmp_path / "x" / "b.wav"]


def test_recordings_of_other_formats_and_linked_folders_are_counted(tmp_path: Path) -> None:
    _touch(
        *(tmp_path / "x" / name for name in ("a.wav", "b.m4a", "c.M4A", "d/e.webm", "f.aac", "notes.txt", "._g.m4a"))
    )
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    found, (passed_over,) = find_recordings([str(tmp_path / "x")])
    assert found == [tmp_path / "x" / "a.wav"]
    assert passed_over.reason == (
        "holds recordings that cannot be decoded (1 .aac, 2 .m4a, 1 .webm): convert them (ffmpeg -i FILE NEW.flac); "
        "holds 1 linked folders, which are not followed: name them as well"
    )


def test_a_folder_without_audio_is_named_beside_one_with(tmp_path: Path) -> None:
    _touch(tmp_path / "x" / "a.wav")
    (tmp_path / "y").mkdir()
    found, (empty,) = find_recordings([str(tmp_path / "y"), str(tmp_path / "x")])
    assert found == [tmp_path / "x" / "a.wav"]
    assert empty == Unreadable(name=str(tmp_path / "y"), reason="holds no audio file, nor do the folders in it")
    assert empty.in_words == f"error: {tmp_path}/y: holds no audio file, nor do the folders in it. Skipped."


def test_a_folder_that_cannot_be_listed_is_named() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # not within tmp_path, which is closed to all but its owner
        Path(scratch).chmod(0o755)
        folder = Path(scratch) / "closed"
        _touch(Path(scratch) / "a.wav", folder / "b.wav")
        folder.chmod(0)
        with _without_privileges():
            _, (closed,) = find_recordings([scratch])
    assert (closed.name, closed.reason) == (str(folder), "cannot be listed (Permission denied)")


@contextmanager
def _without_privileges() -> Iterator[None]:
    """Root may list every folder: be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_nothing_at_all_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"nothing to predict: {tmp_path} holds no audio file.* Name audio files"):
        find_recordings([str(tmp_path)])


def test_a_name_that_is_no_utf_8_is_shown_so_that_it_can_be_had_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    text = shown(name)
    assert text == "caf\\udce9.wav"
    assert os.fsencode(text.encode().decode("unicode_escape")) == b"caf\xe9.wav"
    assert shown(Path("été.wav")) == "été.wav"


def _written(folder: Path, form: str) -> Path | None:
    """A second of sound in a format of libsndfile, in the first of its encodings that it writes; None for no such."""
    path = folder / f"{form}.{_SPELLINGS.get(form, form.lower())}"
    wave = 0.3 * np.sin(np.arange(16_000) / 20)
    for subtype in ("PCM_16", *soundfile.available_subtypes(form)):
        rate = 8_000 if subtype in ("GSM610", "NMS_ADPCM_16") or form == "WVE" else 16_000
        try:
            if soundfile.check_format(form, subtype):
                soundfile.write(path, wave, rate, format=form, subtype=subtype)
                return path
        except soundfile.LibsndfileError:
            path.unlink(missing_ok=True)
    return None


@pytest.mark.parametrize("form", sorted(set(soundfile.available_formats()) - _NOT_IN_ONE_FILE))
def test_every_format_that_libsndfile_writes_is_found_in_a_folder_and_decoded(tmp_path: Path, form: str) -> None:
    path = _written(tmp_path, form)
    assert path is not None
    assert path.suffix in SUFFIXES
    assert find_recordings([str(tmp_path)]) == ([path], [])
    decoded = decode_audio(path, max_duration_s=60.0)
    assert isinstance(decoded, Decoded), decoded
    assert np.abs(decoded.pcm16).max() > 3_000
