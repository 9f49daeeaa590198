"""Audio as other programs leave it: decoded as it sounds, or refused in words; never half of it."""

import io
import os
import re
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.asr import transcribe
from ccts_dist.audio.blocks import decode_blocks
from ccts_dist.audio.convert import convert_audio, decode_audio, decode_samples
from ccts_dist.audio.noise_bank import NoiseBank
from ccts_dist.audio.resampling import BlockResampler, _filter_bank, resample
from ccts_dist.errors import ConfigError, CorpusError
from ccts_dist.inference.predictor import read_audio
from ccts_dist.records import Utterance

RATE = 16_000


def speech(seconds: float = 1.0, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A voice-like tone with a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * 130 * k * time) / k for k in range(1, 8))
    return 0.15 * tones * (1 + np.sin(6 * time)) / 2 + 0.002 * np.random.default_rng(seed).normal(size=len(time))


def encoded(samples: np.ndarray, rate: int = RATE, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def decoded(data: bytes, max_duration_s: float = 60.0) -> np.ndarray | str:
    answer = decode_audio(io.BytesIO(data), max_duration_s=max_duration_s)
    return answer if isinstance(answer, str) else answer.pcm16


MP3 = encoded(speech(), 44_100, "MP3")
OTHER_MP3 = encoded(speech(1.5, seed=1), 44_100, "MP3")
SLOW_MP3 = encoded(speech(1.5), 22_050, "MP3")
ID3 = b"ID3\x03\0\0\0\0\x02\0" + bytes(256)
ID3V1 = b"TAG" + bytes(125)


def bare(mp3: bytes) -> bytes:
    """Without the frame that states how many there are."""
    return mp3[mp3.find(mp3[:2], 4) :]


JOINED_MP3 = {
    "as they are": MP3 + OTHER_MP3,
    "tags before each": ID3 + MP3 + ID3 + OTHER_MP3,
    "tags behind each": MP3 + ID3V1 + OTHER_MP3 + ID3V1,
    "zeros between": MP3 + bytes(3000) + OTHER_MP3,
    "second without a header": MP3 + bare(OTHER_MP3),
    "second at another rate": bare(MP3) + bare(SLOW_MP3),
    "three": MP3 * 3,
}


@pytest.mark.parametrize("data", JOINED_MP3.values(), ids=JOINED_MP3)
def test_mp3s_joined_end_to_end_are_not_taken_for_the_first(data: bytes):
    assert decoded(data) == "holds several MP3 streams one after the other; write it anew as one"


def test_an_mp3_with_tags_of_every_kind_is_one():
    whole = decoded(MP3)
    assert isinstance(whole, np.ndarray)
    for data in (ID3 + MP3, MP3 + ID3V1, ID3 + MP3 + ID3V1, MP3 + bytes(500)):
        np.testing.assert_array_equal(decoded(data), whole)


@pytest.mark.parametrize("kind", ["frames 0", "no frames"])
def test_an_mp3_whose_writer_never_learned_the_number_of_frames_is_not_cut_to_a_guess(kind: str):
    at = next(at for at in (MP3.find(b"Info"), MP3.find(b"Xing")) if at >= 0)
    unknown = bytearray(MP3)
    if kind == "frames 0":
        unknown[at + 8 : at + 12] = bytes(4)
    else:
        unknown[at + 7] &= 0xFE
    found = decoded(bytes(unknown))
    if isinstance(found, str):
        assert re.fullmatch(r"states no length, and \d+ of its 1\d{4} samples are found; write it anew", found)
    else:
        assert len(found) > 0.95 * len(decoded(MP3))
    assert str(decoded(bytes(unknown) + OTHER_MP3)).startswith("holds several MP3 streams")


def endless(wav: bytes) -> bytes:
    """As a program leaves a WAV that writes to a pipe."""
    return wav[:40] + b"\xff" * 4 + wav[44:]


WAV, FLAC = encoded(speech()), encoded(speech(), form="FLAC")
JOINED = {
    "wav": WAV + WAV,
    "wav with a chunk between": WAV + b"LIST\x04\0\0\0INFO" + WAV,
    "wav of unknown length": endless(WAV) + endless(WAV),
    "wav of length 0": WAV[:40] + bytes(4) + WAV[44:] + WAV,
    "flac": FLAC + FLAC,
    "flac with tags": ID3 + FLAC + ID3 + FLAC,
    "aiff": encoded(speech(), form="AIFF") * 2,
    "au": encoded(speech(), form="AU") * 2,
    "w64": encoded(speech(), form="W64") * 2,
    "nist": encoded(speech(), form="NIST") * 2,
    "ogg": encoded(speech(), form="OGG") * 2,
}


@pytest.mark.parametrize("data", JOINED.values(), ids=JOINED)
def test_files_of_any_kind_joined_end_to_end_are_not_taken_for_the_first(data: bytes):
    reason = decoded(data)
    assert isinstance(reason, str)
    assert reason.startswith("holds several ")
    assert reason.endswith(" one after the other; write it anew as one")


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_zeros_before_a_file_are_passed_over(form: str):
    data = encoded(speech(), 44_100, form)
    whole = decoded(data)
    assert isinstance(whole, np.ndarray)
    for before in (bytes(1), bytes(4096), ID3 + bytes(2000)):
        np.testing.assert_array_equal(decoded(before + data), whole)


def test_an_ogg_without_an_end_mark_is_not_called_cut_and_the_remedy_is_named():
    data = bytearray(encoded(speech(), form="OGG"))
    at = data.rfind(b"OggS")
    data[at + 5] &= ~4
    data[at + 22 : at + 26] = bytes(4)
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    crc = zlib.crc32(bytes(data[at:]).translate(mirrored), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    data[at + 22 : at + 26] = crc.to_bytes(4, "big").translate(mirrored)
    assert decoded(bytes(data)) == (
        "has no end mark in its last Ogg page, so it may be cut; if it is complete, write it anew "
        "(ffmpeg -i FILE -c copy NEW)"
    )


@pytest.mark.parametrize("scale", [127, 32_767, 8_388_607, 2_147_483_647])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_on_the_scale_of_integers_are_not_clipped_in_silence(scale: int, subtype: str):
    reason = decoded(encoded(speech() * scale * 2, subtype=subtype))
    assert isinstance(reason, str)
    assert "where full scale is 1, as on the scale of integers" in reason
    assert isinstance(decode_samples(speech() * scale * 2, max_duration_s=60.0), str)


def test_channels_that_cancel_each_other_are_not_averaged_to_silence():
    one = speech()
    reason = decoded(encoded(np.stack([one, -one], axis=1)))
    assert reason == (
        "has channels that cancel each other throughout when they are averaged (out of phase); write it anew with one "
        "of them"
    )
    quiet = decoded(encoded(np.stack([one, -one], axis=1) / 100, subtype="PCM_24"))
    assert quiet == reason


def test_channels_that_cancel_each_other_in_a_part_are_noticed():
    one = speech(3.0)
    other = one.copy()
    other[RATE : 2 * RATE] *= -1
    reason = decoded(encoded(np.stack([one, other], axis=1)))
    assert isinstance(reason, str)
    assert re.match(r"has channels that cancel each other for (0\.9|1\.0) s when", reason)


def test_channels_that_differ_or_are_silent_are_averaged():
    one, two = speech(seed=1), np.random.default_rng(2).normal(0, 0.1, RATE)
    for channels in ((one, one), (one, two), (one, 0 * one), (two, np.roll(two, 7)), (0 * one, 0 * one)):
        assert isinstance(decoded(encoded(np.stack(channels, axis=1))), np.ndarray)


@pytest.mark.parametrize("rate", [1_009, 8_001, 11_127, 15_991, 15_999, 22_255, 44_101, 47_999])
def test_a_rate_that_shares_no_divisor_with_16_khz_keeps_pitch_and_length(rate: int):
    time = np.arange(rate) / rate
    whole = decoded(encoded(0.5 * np.sin(2 * np.pi * 300 * time), rate))
    assert isinstance(whole, np.ndarray)
    assert len(whole) == RATE
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE) * 32_768
    assert np.abs(whole - expected)[1000:-1000].max() < 100  # the filter's own ripple, 0.6 %


def test_filters_computed_on_the_spot_are_those_of_the_usual_rates(monkeypatch: pytest.MonkeyPatch):
    signal = np.random.default_rng(0).normal(size=5_000)
    for rate in (8_000, 44_100, 96_000):
        usual = resample(signal, rate)
        with monkeypatch.context() as patched:
            patched.setattr("ccts_dist.audio.resampling._MAX_KERNEL", 0)
            np.testing.assert_allclose(resample(signal, rate), usual, atol=2e-7)


@pytest.mark.parametrize("rate", [1_009, 15_999, 47_981, 383_990, 1_048_573])
def test_no_rate_takes_more_filters_or_longer_ones_than_its_samples_ask_for(rate: int):
    filters, slopes = _filter_bank(rate)
    assert filters.shape == slopes.shape
    assert filters.size < 130_000
    products = filters.shape[1] * RATE  # of a second of audio
    assert products < 16 * max(rate, 16_000)


def test_an_odd_rate_in_blocks_is_resampled_as_the_whole():
    signal = np.random.default_rng(0).normal(size=20_000)
    for rate in (15_999, 44_101):
        blocks = BlockResampler(rate)
        parts = [blocks.push(signal[at : at + 777]) for at in range(0, len(signal), 777)]
        np.testing.assert_allclose(np.concatenate([*parts, blocks.end()]), resample(signal, rate), atol=1e-12)


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_a_rate_of_no_recording_is_refused(rate: int):
    data = bytearray(encoded(speech()))
    data[24:28] = struct.pack("<I", rate)
    reason = decoded(bytes(data), max_duration_s=1e9)
    assert isinstance(reason, str)
    assert f"has a sample rate of {rate} Hz" in reason


def test_a_small_flac_that_unfolds_to_gigabytes_is_refused_by_its_header():
    data = bytearray(encoded(np.zeros((4096, 8)), 96_000, "FLAC"))
    frames = 96_000 * 600 - 1
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = struct.pack(">I", frames & 0xFFFF_FFFF)
    assert decoded(bytes(data), max_duration_s=600.0) == (
        "has 8 channels of 96000 Hz, more than 230400000 samples together; write it anew with one channel, or at a "
        "lower rate"
    )


@pytest.mark.parametrize(
    ("rate", "words"),
    [(48_000, "lasts more than 2 s"), (96_000, "has 8 channels of 96000 Hz, more than 768000 samples together; ")],
)
def test_a_flac_that_states_no_length_is_held_to_the_limits_while_it_is_decoded(rate: int, words: str):
    data = bytearray(encoded(np.zeros((150_000, 8)), rate, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    reason = decoded(bytes(data), max_duration_s=2.0)
    assert isinstance(reason, str)
    assert reason.startswith(words)


@pytest.mark.parametrize("digits", [19, 4_301, 5_000, 100_000])
@pytest.mark.parametrize("name", ["sample_count", "sample_n_bytes", "channel_count"])
def test_a_sphere_header_with_a_number_of_any_length_is_answered_in_words(digits: int, name: str):
    facts = {"sample_count": "100", "sample_n_bytes": "2", "channel_count": "1"} | {name: "9" * digits}
    lines = "".join(f"{key} -i {value}\n" for key, value in facts.items())
    head = f"NIST_1A\n{8192 + digits}\n{lines}end_head\n"
    assert isinstance(decoded(head.encode().ljust(8192 + digits, b"\n") + bytes(2000)), str)
    assert isinstance(decoded(f"NIST_1A\n{'1' * digits}\n".encode() + bytes(2000)), str)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.wav"))
    (tmp_path / "link.wav").symlink_to(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "nowhere")
    for name, words in {
        tmp_path / "pipe.wav": "is a pipe, and audio is read from files; write it to one and name that",
        tmp_path / "link.wav": "is a pipe, and audio is read from files; write it to one and name that",
        tmp_path / "socket.wav": "is a socket, and audio is read from files; write it to one and name that",
        Path("/dev/zero"): "is a device, and audio is read from files; write it to one and name that",
        tmp_path / "loop.wav": "cannot be opened (Too many levels of symbolic links)",
        tmp_path / "broken.wav": "the audio file is missing",
        tmp_path / "nul\0.wav": "the audio file is missing",
        tmp_path / ("n" * 300): "cannot be opened (File name too long)",
    }.items():
        assert decode_audio(name, max_duration_s=60.0) == words
        assert list(decode_blocks(name)) == [words]


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"\0\0\0\x20ftypM4A ", "MPEG-4 or QuickTime"), (b"\x1a\x45\xdf\xa3", "WebM or Matroska"), (b"\xff\xf1", "AAC")],
)
def test_a_format_that_is_known_and_not_read_is_named(head: bytes, name: str):
    assert decoded(head + bytes(1000)) == (
        f"is {name} audio, which cannot be decoded; convert it (ffmpeg -i FILE NEW.flac)"
    )


def unfolding_flac() -> bytes:
    """A header of ten minutes in eight channels at the highest rate: 25 GB of samples."""
    data = bytearray(encoded(np.zeros((4096, 8)), 655_350, "FLAC"))
    frames = 655_350 * 600 - 1
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = struct.pack(">I", frames & 0xFFFF_FFFF)
    return bytes(data)


REFUSED = {
    "joined": MP3 + OTHER_MP3,
    "scale": encoded(speech() * 32_768, subtype="FLOAT"),
    "out of phase": encoded(np.stack([speech(), -speech()], axis=1)),
    "rate": encoded(speech(), 900),
    "sphere": f"NIST_1A\n{'1' * 5_000}\n".encode() + bytes(2_000),
    "unfolding": unfolding_flac(),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_every_command_refuses_the_same_audio_in_the_same_words(tmp_path: Path, data: bytes):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    words = decode_audio(io.BytesIO(data), max_duration_s=600.0)
    assert isinstance(words, str)
    assert convert_audio(path, max_duration_s=600.0) == words
    with pytest.raises(CorpusError, match=re.escape(words)):
        read_audio(path)
    utterance = Utterance(key="a", audio=path, split="Train", labels={}, scale=(1.0, 7.0))
    (((_, of_transcribing),),) = transcribe._decoded_ahead([[utterance]], 1)
    assert of_transcribing == words
    if data is not REFUSED["unfolding"]:  # without a limit of duration, in blocks, as is augmentation
        assert list(decode_blocks(path))[-1] == words
        with pytest.raises(ConfigError, match=re.escape(words)):
            NoiseBank(tmp_path, key="augment.noises").piece(0, 0.0, RATE)


def test_small_files_that_unfold_to_hours_are_not_decoded_all_at_once(tmp_path: Path):
    data = bytearray(encoded(np.zeros(4096), form="FLAC"))
    data[21] = data[21] & 0xF0
    data[22:26] = struct.pack(">I", 600 * RATE)
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    wanted = [
        Utterance(key=str(number), audio=path, split="Train", labels={}, scale=(1.0, 7.0)) for number in range(60)
    ]
    assert [len(group) for group in transcribe._groups(wanted)] == [24, 24, 12]
