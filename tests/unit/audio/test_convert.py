"""Audio of every kind becomes 16 kHz mono FLAC, or a reason why not."""

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.audio.convert import Converted, convert_audio, decode_audio, flac_facts
from ccts_dist.audio.mp3 import look_at_mp3
from ccts_dist.audio.truncation import audio_start, length_patch, missing_audio
from tests.helpers.examples.shard_examples import write_noise
from tests.tiers import examples


def convert(path: Path) -> Converted:
    converted = convert_audio(path, max_duration_s=2.0)
    assert isinstance(converted, Converted), converted
    return converted


def samples_of(converted: Converted) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(converted.flac), dtype="int16")
    assert rate == 16_000
    return samples


@examples(20)
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


def test_audio_that_gives_no_frame_or_lasts_too_long_is_not_used(tmp_path: Path):
    assert convert(write_noise(tmp_path / "just.wav", 400)).num_samples == 400
    short = convert_audio(write_noise(tmp_path / "a.wav", 399), max_duration_s=2.0)
    assert short == "lasts 399 samples at 16000 Hz, fewer than an encoder's first frame (400)"
    assert convert(write_noise(tmp_path / "full.wav", 32_000)).num_samples == 32_000
    long = convert_audio(write_noise(tmp_path / "b.wav", 32_001), max_duration_s=2.0)
    assert long == "lasts 2.0 s, more than 2 s"


def test_what_cannot_be_decoded_is_reported_in_words_without_a_path(tmp_path: Path):
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio at all")
    empty = tmp_path / "empty.wav"
    empty.touch()
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(4000))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(500, np.nan), 16_000, subtype="FLOAT")
    assert convert_audio(noise, max_duration_s=2.0) == "cannot be decoded (Format not recognised)"
    assert convert_audio(empty, max_duration_s=2.0) == "is an empty file"
    assert convert_audio(raw, max_duration_s=2.0) == "cannot be decoded (Format not recognised)"
    assert convert_audio(tmp_path / "none.wav", max_duration_s=2.0) == "holds no audio"
    assert convert_audio(tmp_path / "nan.wav", max_duration_s=2.0) == "holds samples that are not finite"
    assert convert_audio(tmp_path / "gone.wav", max_duration_s=2.0) == "the audio file is missing"
    assert convert_audio(tmp_path, max_duration_s=2.0) == "cannot be opened (Is a directory)"


FORMATS = {
    "wav": ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "GSM610"],
    "wavex": ["PCM_16"],
    "rf64": ["PCM_16"],
    "flac": ["PCM_S8", "PCM_16", "PCM_24"],
    "ogg": ["VORBIS", "OPUS"],
    "mp3": ["MPEG_LAYER_III"],
    "aiff": ["PCM_16", "PCM_24", "FLOAT", "ULAW"],
    "au": ["PCM_16", "ULAW", "FLOAT"],
    "w64": ["PCM_16", "PCM_24"],
    "caf": ["PCM_16", "ALAC_16"],
    "nist": ["PCM_16"],
}
"""Containers and encodings of speech corpora; soundfile writes them all."""

ENCODINGS = [(container, encoding) for container, encodings in FORMATS.items() for encoding in encodings]


def tone(seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)


def encoded(container: str, encoding: str | None, samples: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=container.upper(), subtype=encoding, **settings)
    return file.getvalue()


def decoded(data: bytes, *, max_duration_s: float = 5.0) -> np.ndarray | str:
    answer = decode_audio(io.BytesIO(data), max_duration_s=max_duration_s)
    return answer if isinstance(answer, str) else answer.pcm16


@pytest.mark.parametrize(("container", "encoding"), ENCODINGS)
def test_every_encoding_comes_through(container: str, encoding: str):
    samples = decoded(encoded(container, encoding, tone()))
    assert isinstance(samples, np.ndarray), samples
    assert 16_000 <= len(samples) < 16_600  # IMA ADPCM fills its last block
    received = samples[:16_000] / 32_768
    assert np.corrcoef(received, tone())[0, 1] > 0.99


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
@pytest.mark.parametrize(("container", "encoding"), ENCODINGS)
def test_a_file_that_ends_early_is_not_used(container: str, encoding: str, share: float):
    whole = encoded(container, encoding, np.random.default_rng(0).uniform(-0.3, 0.3, 32_000))
    reason = decoded(whole[: int(share * len(whole))])
    assert isinstance(reason, str)
    assert reason.startswith(("is cut: ", "cannot be decoded ("))


def test_what_is_missing_of_a_wav_is_reported_in_bytes():
    assert decoded(encoded("wav", "PCM_16", tone())[:-1000]) == "is cut: 31000 of 32000 bytes of audio"


def test_a_wav_whose_writer_counted_the_header_as_audio_is_used():
    whole = bytearray(encoded("wav", "PCM_16", tone()))
    whole[40:44] = struct.pack("<I", 32_044)
    assert len(decoded(bytes(whole))) == 16_000


def test_a_wav_cut_behind_its_audio_is_used():
    whole = encoded("wav", "PCM_16", tone())
    assert len(decoded(whole + b"LIST\x00\x10\x00\x00INFO")) == 16_000


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (0, 0),
        (36, 0),
        (32_036, 0),
        (0xFFFF_FFFF, 0),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
        (0xFFFF_FFFF, 0xFFFF_FFDB),
        (0x7FFF_F024, 0x7FFF_F000),
    ],
)
def test_a_wav_that_was_written_to_a_pipe_is_used(riff_size: int, data_size: int):
    whole = bytearray(encoded("wav", "PCM_16", tone()))
    whole[4:8], whole[40:44] = struct.pack("<I", riff_size), struct.pack("<I", data_size)
    assert len(decoded(bytes(whole))) == 16_000


def test_a_wav_that_states_it_is_empty_and_has_other_chunks_is_empty():
    whole = bytearray(encoded("wav", "PCM_16", np.zeros(0)))[:44] + b"LIST\x04\x00\x00\x00INFO"
    whole[4:8], whole[40:44] = struct.pack("<I", len(whole) - 8), bytes(4)
    assert decoded(bytes(whole)) == "holds no audio"


def test_an_au_that_was_written_to_a_pipe_is_used():
    whole = bytearray(encoded("au", "PCM_16", tone()))
    whole[8:12] = b"\xff" * 4
    assert len(decoded(bytes(whole))) == 16_000


def flac_of_unknown_length() -> bytes:
    """As an encoder leaves it that writes to a pipe: the number of samples in STREAMINFO is 0."""
    whole = bytearray(encoded("flac", "PCM_16", tone()))
    whole[21] &= 0xF0
    whole[22:26] = bytes(4)
    return bytes(whole)


def test_a_flac_of_unknown_length_is_used():
    samples = decoded(flac_of_unknown_length())
    assert isinstance(samples, np.ndarray)
    np.testing.assert_array_equal(samples, decoded(encoded("flac", "PCM_16", tone())))


def test_a_flac_of_unknown_length_that_was_cut_or_is_long_is_not_used():
    assert decoded(flac_of_unknown_length()[:-500]) == "cannot be decoded (flac decoder lost sync)"
    assert decoded(flac_of_unknown_length(), max_duration_s=0.5) == "lasts more than 0.5 s"


NO_END_MARK = (
    "has no end mark in its last Ogg page, so it may be cut; if it is complete, write it anew "
    "(ffmpeg -i FILE -c copy NEW)"
)


def test_an_ogg_cut_between_two_pages_is_not_used():
    whole = encoded("ogg", "VORBIS", np.random.default_rng(0).uniform(-0.3, 0.3, 60_000))
    last_page = whole.rfind(b"OggS")
    assert decoded(whole[:last_page]) == NO_END_MARK


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("which", [0, 1, 2, -2, -1])
def test_an_ogg_with_one_bit_changed_in_a_page_is_not_used(encoding: str, which: int):
    whole, starts = long_ogg(encoding)
    at = starts[which]
    whole[at + 27 + whole[at + 26] + 10] ^= 1
    assert decoded(bytes(whole)) == f"is damaged: its Ogg page at byte {at} does not match its checksum"


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("which", [1, 2, 3, -2])
def test_an_ogg_that_lacks_a_page_is_not_used(encoding: str, which: int):
    whole, starts = long_ogg(encoding)
    del whole[starts[which] : starts[which + 1]]
    assert decoded(bytes(whole)) == f"is damaged: Ogg pages are missing before byte {starts[which]}"


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
def test_an_ogg_of_which_only_the_first_stream_would_be_decoded_is_not_used(encoding: str):
    whole, _ = long_ogg(encoding)
    assert decoded(bytes(whole) * 2) == "holds several Ogg streams one after the other; write it anew as one"


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
def test_bytes_that_are_of_no_page_of_an_ogg_are_passed_over(encoding: str):
    whole, starts = long_ogg(encoding)
    samples = decoded(bytes(whole))
    for at in (starts[3], len(whole)):
        np.testing.assert_array_equal(decoded(bytes(whole[:at] + bytes(100_000) + whole[at:])), samples)


def long_ogg(encoding: str) -> tuple[bytearray, list[int]]:
    """Ogg audio of several pages, and where they begin."""
    whole = encoded("ogg", encoding, np.random.default_rng(0).uniform(-0.3, 0.3, 60_000))
    starts = [match.start() for match in re.finditer(rb"OggS\0", whole)]
    assert len(starts) > 4
    return bytearray(whole), starts


def bare_mp3(**settings: Any) -> bytes:
    """An MP3 without the frame that states how many there are."""
    whole = encoded("mp3", None, np.random.default_rng(0).uniform(-0.3, 0.3, 32_000), **settings)
    return whole[whole.find(whole[:2], 4) :]


def test_an_mp3_that_states_no_length_is_cut_when_its_last_frame_is():
    reason = decoded(bare_mp3()[:-1])
    assert isinstance(reason, str)
    assert re.fullmatch(r"is cut: its last MP3 frame has \d+ of \d+ bytes", reason)


def test_an_mp3_whose_length_is_guessed_wrong_is_not_used():
    reason = decoded(bare_mp3(bitrate_mode="VARIABLE"))
    assert isinstance(reason, str)
    assert re.fullmatch(r"states no length, and \d+ of its 33408 samples are found; write it anew", reason)


def test_an_mp3_that_states_no_length_and_is_damaged_inside_is_not_used():
    whole = bytearray(bare_mp3(bitrate_mode="CONSTANT", compression_level=0.5))
    assert isinstance(decoded(bytes(whole)), np.ndarray)
    whole[len(whole) // 2 : len(whole) // 2 + 3000] = bytes(3000)
    reason = decoded(bytes(whole))
    assert isinstance(reason, str)
    assert re.fullmatch(r"is damaged: no MP3 frame at byte \d+, where one should begin", reason)


@pytest.mark.parametrize("tag_in_front", [False, True])
def test_an_mp3_that_states_no_length_and_loses_one_frame_header_is_not_used(tag_in_front: bool):
    whole = bytearray(bare_mp3())
    whole[whole.find(whole[:2], 6000)] = 0
    reason = decoded((ID3V2 if tag_in_front else b"") + bytes(whole))
    assert isinstance(reason, str)
    assert reason.startswith("is damaged: no MP3 frame at byte ")


ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
APE_ITEMS = b"\x05\0\0\0\0\0\0\0Artist\0Nobod" * 100
APE_V1 = APE_ITEMS + struct.pack("<8sIIII8x", b"APETAGEX", 1000, len(APE_ITEMS) + 32, 100, 0)
APE_V2 = (
    struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(APE_ITEMS) + 32, 100, 0xA000_0000)
    + APE_ITEMS
    + struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(APE_ITEMS) + 32, 100, 0x8000_0000)
)
LYRICS = b"LYRICSBEGIN" + b"la " * 400 + b"LYRICSEND"


TAGS = {
    "ID3v1": ID3V1,
    "ID3v2": ID3V2,
    "ID3v2, begun": b"ID3\x04\0",
    "APEv1": APE_V1,
    "APEv2": APE_V2,
    "Lyrics3": LYRICS,
    "APEv1, ID3v1": APE_V1 + ID3V1,
    "APEv2, Lyrics3, ID3v1": APE_V2 + LYRICS + ID3V1,
    "Lyrics3 without its beginning": b"la la LYRICSEND",
    "zeros": bytes(50),  # fewer than a frame has
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_tags_behind_the_frames_of_an_mp3_are_no_audio(tags: bytes):
    tagged = io.BytesIO(bare_mp3() + tags)
    assert (missing_audio(tagged), look_at_mp3(tagged).samples) == ("", 33_408)


@pytest.mark.parametrize(("stated", "fault"), [(58, ""), (5, "holds several MP3 streams")])
def test_the_number_of_frames_that_a_vbri_header_states_is_compared(stated: int, fault: str):
    data = bytearray(bare_mp3())
    data[36:62] = struct.pack(">4sHHHII8x", b"VBRI", 1, 0, 0, 0, stated)
    assert look_at_mp3(io.BytesIO(data)).fault.startswith(fault)
    assert bool(look_at_mp3(io.BytesIO(data)).fault) == bool(fault)


def many(chunk: bytes, number: int, container: str, at: int) -> bytes:
    """A file with small chunks at an offset, and the last 100 bytes of its audio missing."""
    whole = encoded(container, "PCM_16", tone(0.1))
    return whole[:at] + chunk * number + whole[at:-100]


@pytest.mark.parametrize(
    ("container", "at", "chunk"),
    [
        ("wav", 12, b"note" + bytes(4)),
        ("caf", 8, b"note" + bytes(8)),
        ("w64", 40, b"note" + bytes(12) + struct.pack("<Q", 24)),
    ],
)
def test_the_length_behind_very_many_chunks_is_not_looked_for(container: str, at: int, chunk: bytes):
    assert missing_audio(io.BytesIO(many(chunk, 10, container, at))).startswith("is cut: ")
    assert missing_audio(io.BytesIO(many(chunk, 10_001, container, at))) == ""


def test_a_second_file_behind_very_many_chunks_is_not_looked_for():
    whole, chunk = encoded("wav", "PCM_16", tone(0.1)), b"note" + bytes(4)
    assert missing_audio(io.BytesIO(whole + chunk * 10 + whole)).startswith("holds several files of its kind")
    assert missing_audio(io.BytesIO(whole + chunk * 10_001 + whole)) == ""


def test_a_wav_of_no_stated_length_with_very_many_chunks_is_taken_for_audio():
    whole = bytearray(encoded("wav", "PCM_16", np.zeros(0)))[:44]
    whole[40:44] = bytes(4)
    assert length_patch(io.BytesIO(whole + (b"note" + bytes(4)) * 10)) == {}
    assert length_patch(io.BytesIO(whole + (b"note" + bytes(4)) * 10_001)) == {40: b"\xff" * 4}


def test_audio_behind_very_many_tags_is_not_looked_for():
    tag = b"ID3\x04" + bytes(6)
    assert audio_start(io.BytesIO(tag * 100 + b"RIFF")) == 1_000
    assert audio_start(io.BytesIO(tag * 101 + b"RIFF")) == 0


@examples(150)
@given(st.sampled_from(ENCODINGS), st.data())
def test_damaged_headers_give_words_or_audio_and_never_an_error(
    tmp_path_factory: pytest.TempPathFactory, which: tuple[str, str], data: st.DataObject
):
    whole = bytearray(encoded(*which, tone(0.1)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole), 120) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    from_memory = decoded(bytes(whole[:end]))
    path = tmp_path_factory.mktemp("audio") / "a"
    path.write_bytes(whole[:end])
    from_file = decode_audio(path, max_duration_s=5.0)
    assert type(from_memory) is (str if isinstance(from_file, str) else np.ndarray)


def test_what_is_no_flac_states_nothing():
    assert flac_facts(b"RIFF" + bytes(40)) == (0, 0)
    assert flac_facts(b"fLaC") == (0, 0)
