"""Noise, rooms and speed: by hand, and the same for an utterance wherever and whenever it is read."""

from fractions import Fraction

import numpy as np
import pytest
import soundfile

from ccts_dist.audio.augment import (
    Augmenter,
    at_speed,
    babble,
    length_at_speed,
    mix,
    pink_noise,
    reverberate,
    white_noise,
)
from ccts_dist.config import AugmentConfig
from ccts_dist.errors import ConfigError


def no_talkers(seed: int):
    del seed
    return iter(())


def tone(num_samples: int = 16_000, frequency: float = 440.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / 16_000)


def power_db(wave: np.ndarray) -> float:
    return 10 * np.log10(np.mean(wave**2))


def test_noise_is_mixed_in_at_the_ratio_by_hand():
    wave, noise = np.array([1.0, -1.0, 1.0, -1.0]), np.array([3.0, 3.0, -3.0, -3.0])
    # Powers 1 and 9: at 10 dB the noise keeps a tenth of the wave's, so it is divided by sqrt(90).
    np.testing.assert_allclose(mix(wave, noise, 10.0), wave + noise / np.sqrt(90))
    # At 0 dB both are equally strong: divided by 3.
    np.testing.assert_allclose(mix(wave, noise, 0.0), [2.0, 0.0, 0.0, -2.0])


def test_silence_stays_silent_and_silent_noise_adds_nothing():
    wave, nothing = np.array([1.0, -1.0]), np.zeros(2)
    np.testing.assert_array_equal(mix(nothing, wave, 10.0), nothing)
    np.testing.assert_array_equal(mix(wave, nothing, 10.0), wave)


def test_a_room_by_hand():
    # The direct sound is the second tap. y[m] = x[m] + (x[m + 1] + x[m - 1]) / 2 gives [1, 0.5, 1, 2] of energy 6.25,
    # which is brought to the 5 of the wave.
    wet = reverberate(np.array([1.0, 0.0, 0.0, 2.0]), np.array([0.5, 1.0, 0.5]))
    np.testing.assert_allclose(wet, np.array([1.0, 0.5, 1.0, 2.0]) * np.sqrt(5 / 6.25))


@pytest.mark.parametrize("delay", [0, 3, 500])
def test_a_room_without_walls_changes_nothing_however_late_its_sound_comes(delay):
    response = np.zeros(600)
    response[delay] = -0.2 if delay else 0.2
    wave = tone(1000)
    np.testing.assert_allclose(reverberate(wave, response), wave if delay == 0 else -wave, atol=1e-12)


def test_a_long_room_is_what_plain_convolution_gives():
    draws = np.random.default_rng(0)
    wave, response = draws.standard_normal(700), draws.standard_normal(2000) * np.exp(-np.arange(2000) / 200)
    response[40] = 9.0
    expected = np.convolve(wave, response)[40 : 40 + 700]
    expected *= np.sqrt(np.sum(wave**2) / np.sum(expected**2))
    np.testing.assert_allclose(reverberate(wave, response), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("speed", "length", "frequency"), [(Fraction(11, 10), 14_546, 484), (Fraction(9, 10), 17_778, 396)]
)
def test_speed_changes_length_and_pitch_by_hand(speed, length, frequency):
    played = at_speed(tone(), speed)
    assert len(played) == length == length_at_speed(16_000, speed)
    spectrum = np.abs(np.fft.rfft(played, 16_000 * 4))
    assert spectrum.argmax() / 4 == pytest.approx(frequency, abs=1)
    assert power_db(played) == pytest.approx(power_db(tone()), abs=0.1)


def test_white_noise_has_equal_power_per_hertz_and_pink_per_octave():
    for make, falls in ((white_noise, False), (pink_noise, True)):
        power = np.abs(np.fft.rfft(make(2**16, 5))) ** 2
        octaves = [power[2**k : 2 ** (k + 1)].sum() / (1 if falls else 2**k) for k in range(8, 15)]
        assert max(octaves) / min(octaves) < 1.3
    white = white_noise(100_001, 3)
    assert len(white) == 100_001
    assert white.mean() == pytest.approx(0, abs=0.01)
    assert white.std() == pytest.approx(1, abs=0.01)
    assert np.mean(white[1:] * white[:-1]) == pytest.approx(0, abs=0.01)
    assert not np.array_equal(white_noise(100, 1), white_noise(100, 2))


def test_talkers_of_babble_are_equally_loud_and_shorter_ones_go_on():
    loud, soft = np.array([4.0, -4.0], np.float32), np.array([0.5, 0.5, 0.5], np.float32)
    silent = np.zeros(4, np.float32)
    np.testing.assert_allclose(babble(4, iter([loud, silent, soft])), [2.0, 0.0, 2.0, 0.0])
    np.testing.assert_array_equal(babble(3, iter([])), np.zeros(3))


@pytest.mark.parametrize("source", ["white", "pink", "folder"])
@pytest.mark.parametrize("snr_db", [-5.0, 12.0])
def test_measured_signal_to_noise_ratio_is_the_one_asked_for(tmp_path, source, snr_db):
    if source == "folder":
        soundfile.write(tmp_path / "hum.wav", tone(5_000, 100.0), 8_000)
    config = AugmentConfig(noises=(str(tmp_path) if source == "folder" else source,), snr_db=(snr_db, snr_db))
    wave = tone()
    for key in ("a", "b"):
        changed = Augmenter(config, seed=1).change(wave, 0, key, no_talkers)
        assert power_db(wave) - power_db(changed - wave) == pytest.approx(snr_db, abs=0.1)


def test_ratios_are_drawn_evenly_between_lowest_and_highest():
    augmenter = Augmenter(AugmentConfig(noises=("white",), snr_db=(0.0, 20.0)), seed=1)
    wave = tone(2_000)
    found = [
        power_db(wave) - power_db(augmenter.change(wave, 0, f"u{number}", no_talkers) - wave) for number in range(400)
    ]
    assert min(found) > -0.01
    assert max(found) < 20.01
    counts, _ = np.histogram(found, bins=4, range=(0, 20))
    assert counts.min() > 70


def test_what_is_done_depends_on_seed_epoch_and_key_and_on_nothing_else():
    config = AugmentConfig(noises=("white", "pink"), speed=(0.9, 1.0, 1.1))
    wave = tone(2_000)
    first, again = Augmenter(config, seed=1), Augmenter(config, seed=1)
    again.change(wave, 7, "other", no_talkers)
    mine = first.change(wave, 3, "key", no_talkers)
    np.testing.assert_array_equal(mine, again.change(wave, 3, "key", no_talkers))
    for other, epoch, key in ((Augmenter(config, seed=2), 3, "key"), (first, 4, "key"), (first, 3, "yek")):
        assert not np.array_equal(mine, other.change(wave, epoch, key, no_talkers))
    assert len({first.speed(epoch, "key") for epoch in range(30)}) == 3


def test_turning_one_thing_on_leaves_the_draws_of_the_others(tmp_path):
    response = np.zeros(50)
    response[0] = 1.0
    soundfile.write(tmp_path / "no_walls.wav", response, 16_000, subtype="FLOAT")
    wave = tone(2_000)
    noisy = AugmentConfig(noises=("white",), noise_probability=0.5)
    both = AugmentConfig(noises=("white",), noise_probability=0.5, impulse_responses=(str(tmp_path),))
    for number in range(8):
        alone = Augmenter(noisy, seed=1).change(wave, 0, str(number), no_talkers)
        np.testing.assert_allclose(
            alone, Augmenter(both, seed=1).change(wave, 0, str(number), no_talkers), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("what", ["noise", "reverb"])
def test_as_many_utterances_are_changed_as_the_probability_states(tmp_path, what):
    soundfile.write(tmp_path / "room.wav", np.array([1.0, 0.5, 0.25]), 16_000)
    sources = {"noise": {"noises": ("white",)}, "reverb": {"impulse_responses": (str(tmp_path),)}}[what]
    wave = tone(500)
    shares = {}
    for probability in (0.0, 0.3, 1.0):
        augmenter = Augmenter(AugmentConfig(**sources, **{f"{what}_probability": probability}), seed=1)
        changed = [
            not np.array_equal(wave, augmenter.change(wave, 0, str(number), no_talkers)) for number in range(400)
        ]
        shares[probability] = sum(changed) / 400
    assert shares[0.0] == 0
    assert shares[0.3] == pytest.approx(0.3, abs=0.07)
    assert shares[1.0] == 1


def test_every_file_of_every_folder_comes_to_be_used(tmp_path):
    for number in range(3):
        (tmp_path / f"rooms{number // 2}").mkdir(exist_ok=True)
        response = np.zeros(10)
        response[[0, number + 1]] = 1.0, 0.5
        soundfile.write(tmp_path / f"rooms{number // 2}" / f"{number}.wav", response, 16_000, subtype="FLOAT")
    config = AugmentConfig(impulse_responses=(str(tmp_path / "rooms0"), str(tmp_path / "rooms1")))
    augmenter, click = Augmenter(config, seed=1), np.eye(1, 20)[0]
    echoes = [int(np.argsort(augmenter.change(click, 0, str(n), no_talkers))[-2]) for n in range(60)]
    assert {echo: echoes.count(echo) > 10 for echo in (1, 2, 3)} == {1: True, 2: True, 3: True}


def test_wrong_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"augment.noises = 'whit': no such folder.*did you mean .* 'white'\?"):
        Augmenter(AugmentConfig(noises=("whit",)), seed=1)
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), 16_000)
    augmenter = Augmenter(AugmentConfig(impulse_responses=(str(tmp_path),)), seed=1)
    with pytest.raises(ConfigError, match=r"augment.impulse_responses: .*silent\.wav is silent"):
        augmenter.change(tone(), 0, "key", no_talkers)
    soundfile.write(tmp_path / "talk.wav", np.zeros(31 * 16_000), 16_000)
    with pytest.raises(ConfigError, match=r"talk\.wav: lasts 31\.0 s, more than 30 s"):
        Augmenter(AugmentConfig(impulse_responses=(str(tmp_path),)), seed=1)


def test_digest_is_of_sources_and_empty_without_any():
    assert Augmenter(AugmentConfig(speed=(0.9,)), seed=1).digest == ""
    white, pink = (Augmenter(AugmentConfig(noises=(name,)), seed=1).digest for name in ("white", "pink"))
    assert white != pink
