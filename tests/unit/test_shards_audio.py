"""Audio of every kind becomes 16 kHz mono FLAC, or a reason why not."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ccts_dist.shards.audio import Converted, convert_audio, flac_facts
from tests.shard_examples import write_noise


def convert(path: Path) -> Converted:
    converted = convert_audio(path, max_duration_s=2.0)
    assert isinstance(converted, Converted), converted
    return converted


def samples_of(converted: Converted) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(converted.flac), dtype="int16")
    assert rate == 16_000
    return samples


@settings(deadline=None, max_examples=20)
@given(st.integers(400, 3000), st.integers(0, 2**32 - 1))
def test_sixteen_bit_audio_at_16_khz_comes_through_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, num_samples: int, seed: int
):
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    whole = np.random.default_rng(seed).integers(-32768, 32768, num_samples, dtype=np.int16)
    soundfile.write(path, whole, 16_000)
    converted = convert(path)
    np.testing.assert_array_equal(samples_of(converted), whole)
    assert (converted.num_samples, converted.resampled, converted.mixed_down) == (num_samples, False, False)
    assert flac_facts(converted.flac) == (16_000, num_samples)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_length_when_resampled(tmp_path: Path, rate: int):
    time = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), rate)
    converted = convert(tmp_path / "a.wav")
    assert converted.resampled
    assert converted.num_samples == 16_000
    spectrum = np.abs(np.fft.rfft(samples_of(converted)))
    assert int(spectrum.argmax()) == 1000
    assert samples_of(converted)[2000:-2000].max() == pytest.approx(0.5 * 32768, rel=0.01)


def test_channels_are_averaged(tmp_path: Path):
    stereo = np.stack([np.full(500, 1000), np.full(500, 3000)], axis=1).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", stereo, 16_000)
    converted = convert(tmp_path / "a.wav")
    assert converted.mixed_down
    np.testing.assert_array_equal(samples_of(converted), np.full(500, 2000))


def test_what_lies_beyond_full_scale_is_clipped_and_does_not_wrap(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.tile([1.5, -1.5], 300), 16_000, subtype="FLOAT")
    assert set(samples_of(convert(tmp_path / "a.wav"))) == {32767, -32768}


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_whatever_libsndfile_reads_is_taken(tmp_path: Path, name: str):
    soundfile.write(tmp_path / name, 0.1 * np.sin(np.arange(16_000)), 16_000)
    assert convert(tmp_path / name).num_samples == pytest.approx(16_000, abs=2000)  # MP3 adds its own padding


def test_audio_that_gives_no_frame_or_lasts_too_long_is_not_used(tmp_path: Path):
    assert convert(write_noise(tmp_path / "just.wav", 400)).num_samples == 400
    short = convert_audio(write_noise(tmp_path / "a.wav", 399), max_duration_s=2.0)
    assert short == "lasts 399 samples at 16000 Hz, fewer than an encoder's first frame (400)"
    assert convert(write_noise(tmp_path / "full.wav", 32_000)).num_samples == 32_000
    long = convert_audio(write_noise(tmp_path / "b.wav", 32_001), max_duration_s=2.0)
    assert long == "lasts 2.0 s, more than 2 s"


def test_a_rate_whose_filter_would_fill_the_memory_is_not_used(tmp_path: Path):
    path = write_noise(tmp_path / "a.wav", 4000, rate=15_991)
    assert convert_audio(path, max_duration_s=2.0) == (
        "has a sample rate of 15991 Hz, which cannot be resampled to 16000 Hz"
    )


def test_what_cannot_be_decoded_is_told_in_words_without_a_path(tmp_path: Path):
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio at all")
    empty = tmp_path / "empty.wav"
    empty.touch()
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(4000))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan), 16_000, subtype="FLOAT")
    assert convert_audio(noise, max_duration_s=2.0) == "cannot be decoded (Format not recognised)"
    assert "cannot be decoded" in str(convert_audio(empty, max_duration_s=2.0))
    assert convert_audio(raw, max_duration_s=2.0) == "cannot be decoded (headerless audio)"
    assert convert_audio(tmp_path / "none.wav", max_duration_s=2.0) == "holds no audio"
    assert convert_audio(tmp_path / "nan.wav", max_duration_s=2.0) == "holds samples that are not finite"
    assert convert_audio(tmp_path / "gone.wav", max_duration_s=2.0) == "the audio file is missing"
    assert convert_audio(tmp_path, max_duration_s=2.0) == "cannot be opened (Is a directory)"


def test_a_flac_that_was_cut_is_not_used(tmp_path: Path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 30_000), 16_000)
    os.truncate(path, path.stat().st_size // 2)
    reason = convert_audio(path, max_duration_s=2.0)
    assert isinstance(reason, str)
    assert "cut" in reason or "cannot be decoded" in reason


def test_what_is_no_flac_states_nothing():
    assert flac_facts(b"RIFF" + bytes(40)) == (0, 0)
    assert flac_facts(b"fLaC") == (0, 0)
