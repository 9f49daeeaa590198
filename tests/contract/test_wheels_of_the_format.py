"""What the shard format takes for granted of the libraries that write and read it."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from datasets.packaged_modules.webdataset.webdataset import base_plus_ext as datasets_base_plus_ext
from miniaudio import ffi, lib
from webdataset.tariterators import base_plus_ext

from ccts_dist.audio.convert import flac_facts
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.schema import escape_key
from ccts_dist.shards.format.tars import write_tar


def test_the_bytes_of_a_tar_are_pinned(tmp_path: Path):
    """Another version of the tar writer must not change the digests that manifests and caches have recorded."""
    key = escape_key("MSP/ü." + "x" * 120)
    write_tar(
        tmp_path / "a.tar", [("a", {"flac": b"audio", "json": b"{}", "teacher.npy": b"12"}), (key, {"json": b""})]
    )
    digest = hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert digest == "d06fad873b6df20d21e31b732ade430841fb30e694a6a96db9ed60ede768d899"


@pytest.mark.parametrize("split_name", [base_plus_ext, datasets_base_plus_ext])
@pytest.mark.parametrize("key", ["a.5_1", "MSP/ü 1.wav", "…", "-_", "%2E"])
@pytest.mark.parametrize("extension", ["flac", "json", "teacher.npy"])
def test_both_readers_split_a_member_name_where_the_format_does(split_name, key: str, extension: str):
    escaped = escape_key(key)
    assert split_name(f"{escaped}.{extension}") == (escaped, extension)


def test_the_standard_tar_reader_takes_the_extended_header_of_a_long_name(tmp_path: Path):
    write_tar(tmp_path / "a.tar", [("k" * 200, {"json": b"{}"})])
    with tarfile.open(tmp_path / "a.tar") as opened:
        assert opened.getnames() == ["k" * 200 + ".json"]


def test_flac_is_a_function_of_its_samples_and_states_their_number():
    samples = np.random.default_rng(0).integers(-9000, 9000, 5001, dtype=np.int16)

    def encode() -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, 16_000, format="FLAC", subtype="PCM_16")
        return file.getvalue()

    first = encode()
    assert first == encode()
    assert flac_facts(first) == (16_000, 5001)


@pytest.mark.parametrize("num_samples", [1, 400, 4_095, 4_096, 4_097, 40_001])
def test_the_fast_decoder_gives_the_samples_of_libsndfile(num_samples: int):
    draws = np.random.default_rng(num_samples)
    samples = np.clip(draws.normal(0, 12_000, num_samples), -32_768, 32_767).astype(np.int16)
    samples[: num_samples // 3] = 0
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="FLAC", subtype="PCM_16")
    payload, ours = file.getvalue(), np.empty(num_samples, np.float32)
    flac = lib.ma_dr_flac_open_memory(payload, len(payload), ffi.NULL)
    assert lib.ma_dr_flac_read_pcm_frames_f32(flac, num_samples, ffi.from_buffer("float[]", ours)) == num_samples
    lib.ma_dr_flac_close(flac)
    theirs, _ = soundfile.read(io.BytesIO(payload), dtype="float32")
    np.testing.assert_array_equal(ours, theirs)


def test_the_fast_decoder_reports_damage_by_the_number_of_samples():
    draws = np.random.default_rng(0)
    file = io.BytesIO()
    soundfile.write(file, draws.normal(0, 9_000, 30_000).astype(np.int16), 16_000, format="FLAC", subtype="PCM_16")
    sound = file.getvalue()
    out = np.empty(30_000, np.float32)
    for _ in range(50):
        damaged = bytearray(sound)
        damaged[int(draws.integers(200, len(sound)))] ^= 1 << int(draws.integers(8))
        flac = lib.ma_dr_flac_open_memory(bytes(damaged), len(damaged), ffi.NULL)
        assert lib.ma_dr_flac_read_pcm_frames_f32(flac, 30_000, ffi.from_buffer("float[]", out)) < 30_000
        lib.ma_dr_flac_close(flac)


def test_an_arrow_file_is_a_function_of_its_rows(tmp_path: Path):
    for name in ("a", "b"):
        with IndexWriter(tmp_path / name) as index:
            for first in (0, 10):
                index.add(pa.table({"key": [f"ü{first + number}" for number in range(10)]}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_json_writes_the_shortest_number_that_comes_back():
    """Labels in index and JSON member are compared exactly, through this round trip."""
    numbers = np.random.default_rng(0).uniform(size=1000)
    assert json.loads(json.dumps(numbers.tolist())) == numbers.tolist()
