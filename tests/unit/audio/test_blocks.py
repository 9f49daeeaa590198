"""Audio in blocks is the audio of the whole, and damage is reported in the same words."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.audio import decode as audio_file
from ccts_dist.audio.blocks import decode_blocks
from ccts_dist.audio.convert import Decoded, decode_audio
from ccts_dist.audio.resampling import BlockResampler, resample
from tests.tiers import examples

RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 15_950)


def _noise(num_samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.3, (num_samples, channels))


@examples(60)
@given(
    rate=st.sampled_from(RATES),
    lengths=st.lists(st.integers(1, 3_000) | st.sampled_from([1, 2, 441, 9_000]), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_a_signal_in_blocks_is_resampled_as_the_whole(rate: int, lengths: list[int], seed: int) -> None:
    signal = _noise(sum(lengths), seed=seed)[:, 0]
    resampler, given_back = BlockResampler(rate), []
    at = 0
    for length in lengths:
        given_back.append(resampler.push(signal[at : at + length]))
        at += length
    given_back.append(resampler.end())
    whole = signal if rate == 16_000 else resample(signal, rate)
    together = np.concatenate(given_back)
    assert together.shape == whole.shape
    assert np.abs(together - whole).max() < 1e-13


def test_what_a_resampler_holds_does_not_grow() -> None:
    resampler = BlockResampler(44_100)
    held = []
    for number in range(30):
        resampler.push(_noise(44_100, seed=number)[:, 0])
        held.append(len(resampler._held))
    assert max(held) <= 4 * 441, "the filter's reach, and no more"


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 8_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_a_file_in_blocks_is_bit_by_bit_the_file_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, channels: int, kind: str
) -> None:
    monkeypatch.setattr(audio_file, "_BLOCK_VALUES", 5_000)
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, _noise(rate + 777, channels), rate)
    whole = decode_audio(path, max_duration_s=10.0)
    assert isinstance(whole, Decoded)
    blocks = list(decode_blocks(path))
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate(blocks), whole.pcm16)


def _spoil(path: Path, how: str) -> None:
    """A file that cannot be used, in one of many ways."""
    if how == "missing":
        return
    if how == "text":
        path.write_text("no audio")
        return
    rate, num_samples = (999, 999) if how == "low rate" else (16_000, {"short": 399, "empty": 0}.get(how, 60_000))
    samples = _noise(num_samples)
    if how == "not finite":
        samples[50_000] = np.nan
    if how == "off scale":
        samples *= 32_768
    if how == "out of phase":
        samples = samples * [1.0, -1.0]
    soundfile.write(path, samples, rate, subtype="FLOAT")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.parametrize(
    "how", ["missing", "text", "empty", "short", "cut", "low rate", "not finite", "off scale", "out of phase"]
)
def test_damage_is_reported_last_and_in_the_words_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(audio_file, "_BLOCK_VALUES", 5_000)
    path = tmp_path / "a.wav"
    _spoil(path, how)
    *blocks, reason = decode_blocks(path)
    assert reason == decode_audio(path, max_duration_s=10.0)
    assert all(isinstance(block, np.ndarray) for block in blocks)


def test_a_file_that_states_more_than_a_day_is_refused_before_its_first_block(tmp_path: Path) -> None:
    """Silence: a day of it takes four megabytes."""
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(16_000), 16_000, format="FLAC")
    data = bytearray(path.read_bytes())
    for seconds, first in ((86_400, None), (86_401, "lasts 86401.0 s, more than 86400 s")):
        facts = int.from_bytes(data[18:26], "big") >> 36 << 36 | seconds * 16_000
        data[18:26] = facts.to_bytes(8, "big")
        path.write_bytes(data)
        block = next(decode_blocks(path))
        assert block == first if first else isinstance(block, np.ndarray)


def test_a_flac_that_breaks_off_gives_what_comes_before_and_then_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_file, "_BLOCK_VALUES", 5_000)
    path = tmp_path / "a.flac"
    soundfile.write(path, _noise(60_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *blocks, reason = decode_blocks(path)
    assert isinstance(reason, str)
    assert 20_000 < sum(map(len, blocks)) < 40_000
