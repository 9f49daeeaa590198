"""Folders of noises and impulse responses: what is in them is found out before training, and read in pieces."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.audio.noise_bank import NoiseBank
from ccts_dist.errors import ConfigError

KEY = "augment.noises"


def write(path: Path, wave: np.ndarray, rate: int = 16_000, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)
    return path


def ramp(count: int) -> np.ndarray:
    """Sample k is k / 2^15, exact in 16 bits."""
    return np.arange(count) / 2**15


def test_pieces_of_a_file_by_hand(tmp_path):
    write(tmp_path / "deep" / "er" / "ramp.wav", ramp(100), subtype="PCM_16")
    (tmp_path / "README").write_text("not audio")
    (tmp_path / ".hidden.wav").write_text("not audio")
    folder = NoiseBank(tmp_path, key=KEY)
    assert len(folder) == 1
    # Forty of a hundred samples may begin at 0 to 60: halfway is 30.
    np.testing.assert_array_equal(folder.piece(0, 0.5, 40), ramp(100)[30:70])
    np.testing.assert_array_equal(folder.piece(0, 0.0, 40), ramp(100)[:40])
    np.testing.assert_array_equal(folder.piece(0, 1 - 2**-53, 40), ramp(100)[60:])
    np.testing.assert_array_equal(folder.whole(0), ramp(100))


def test_a_short_file_is_repeated(tmp_path):
    write(tmp_path / "ramp.wav", ramp(30), subtype="PCM_16")
    piece = NoiseBank(tmp_path, key=KEY).piece(0, 0.9, 70)
    np.testing.assert_array_equal(piece, np.concatenate([ramp(30), ramp(30), ramp(10)]))


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_rates_are_resampled_and_channels_averaged(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(2 * rate) / rate)
    write(tmp_path / "tone.flac", np.stack([tone, 0 * tone], axis=1), rate)
    piece = NoiseBank(tmp_path, key=KEY).piece(0, 0.5, 16_000)
    spectrum = np.abs(np.fft.rfft(piece))
    assert len(piece) == 16_000
    assert int(spectrum.argmax()) == 1_000
    assert 2 * spectrum.max() / 16_000 == pytest.approx(0.25, rel=0.02), "half of one channel's half"


def test_the_digest_is_of_what_is_in_the_folder_wherever_it_is(tmp_path):
    for name in ("one", "two", "three"):
        write(tmp_path / name / "a.wav", ramp(100))
    write(tmp_path / "three" / "b.wav", ramp(100))
    one, two, three = (NoiseBank(tmp_path / name, key=KEY).digest for name in ("one", "two", "three"))
    assert one == two != three


def test_a_folder_that_is_not_there_or_holds_no_audio_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"augment\.noises = '.*nowhere': no such folder"):
        NoiseBank(tmp_path / "nowhere", key=KEY)
    (tmp_path / "README").write_text("nothing here")
    with pytest.raises(ConfigError, match="holds no audio files"):
        NoiseBank(tmp_path, key=KEY)


def test_files_that_cannot_be_used_are_named_with_their_reasons(tmp_path):
    write(tmp_path / "good.wav", ramp(1000))
    whole = write(tmp_path / "cut.wav", ramp(1000)).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:1000])
    (tmp_path / "text.wav").write_text("no audio at all, whatever its name states")
    write(tmp_path / "empty.wav", ramp(0))
    with pytest.raises(ConfigError, match="3 of 4 files cannot be used") as caught:
        NoiseBank(tmp_path, key=KEY)
    words = str(caught.value)
    assert "\n" not in words
    assert caught.value.exit_code == 2
    for named in ("cut.wav: ", "text.wav: cannot be decoded", "empty.wav: holds no audio", "Mend or remove them"):
        assert named in words
    assert "good.wav" not in words


def test_of_many_bad_files_five_are_named_and_the_rest_counted(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.wav").write_text("no audio")
    with pytest.raises(ConfigError, match=r"8 of 8 files cannot be used: .*4\.wav.*; and 3 more\. Mend"):
        NoiseBank(tmp_path, key=KEY)


def test_a_recording_is_no_impulse_response(tmp_path):
    write(tmp_path / "talk.wav", np.zeros(48_000))
    with pytest.raises(ConfigError, match=r"talk\.wav: lasts 3\.0 s, more than 2 s"):
        NoiseBank(tmp_path, key="augment.impulse_responses", max_duration_s=2.0)


def test_a_file_that_changes_under_way_is_named(tmp_path):
    path = write(tmp_path / "noise.wav", ramp(1000))
    folder = NoiseBank(tmp_path, key=KEY)
    write(path, ramp(10))
    with pytest.raises(ConfigError, match=r"augment\.noises: .*noise\.wav cannot be read: .*Mend or remove it"):
        folder.piece(0, 0.0, 500)
    path.unlink()
    with pytest.raises(ConfigError, match=r"noise\.wav cannot be read"):
        folder.whole(0)


def test_a_rate_that_is_none_of_speech_is_refused(tmp_path):
    write(tmp_path / "odd.wav", ramp(1000), 999)
    with pytest.raises(ConfigError, match=r"odd\.wav: has a sample rate of 999 Hz, which cannot be resampled"):
        NoiseBank(tmp_path, key=KEY)


def test_a_flac_that_states_no_length_is_refused(tmp_path):
    path = write(tmp_path / "piped.flac", ramp(1000))
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"piped\.flac: (states no length|cannot be decoded)"):
        NoiseBank(tmp_path, key=KEY)


def test_the_end_of_an_mp3_is_read_though_its_length_is_a_guess(tmp_path):
    write(tmp_path / "noise.mp3", 0.1 * np.random.default_rng(1).standard_normal(40_000))
    piece = NoiseBank(tmp_path, key=KEY).piece(0, 1 - 2**-53, 8_000)
    assert len(piece) == 8_000
    assert piece.std() > 0.01
