"""Frames kept beside shards: whole or not there, found by shard and encoder, damage noticed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.shards.feature_cache import FrameCache, has_frames, write_frames
from ccts_dist.shards.format.schema import ShardEntry
from tests.helpers.faults.damage import flip
from tests.helpers.processes.small_runs import build_two_kinds


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> ShardEntry:
    shard_set = build_two_kinds(tmp_path_factory.mktemp("frames"), num_train=6)
    return shard_set.shards_of(("Train",))[0]


def frames_of(shard: ShardEntry, features: int = 4) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.normal(size=(1 + row % 3, features)).astype(np.float32) for row in range(shard.num_utterances)]


def write(folder: Path, shard: ShardEntry, frame_type="float32", **changes) -> list[np.ndarray]:
    frames = frames_of(shard)
    longest_first = sorted(enumerate(frames), key=lambda one: -len(one[1]))
    write_frames(folder, shard, changes.get("rows", longest_first), features=4, frame_type=frame_type)
    return frames


def test_frames_come_back_whatever_the_order_in_which_they_were_written(tmp_path: Path, shard: ShardEntry):
    assert not has_frames(tmp_path, shard)
    frames = write(tmp_path, shard)
    assert has_frames(tmp_path, shard)
    cache = FrameCache(tmp_path, [shard])
    assert cache.features == 4
    for row, expected in enumerate(frames):
        np.testing.assert_array_equal(cache.read(shard.name, row, "key"), expected)


def test_half_precision_is_read_as_single_and_takes_half_the_room(tmp_path: Path, shard: ShardEntry):
    frames = write(tmp_path / "half", shard, "float16")
    write(tmp_path / "single", shard)
    cache = FrameCache(tmp_path / "half", [shard])
    for row, expected in enumerate(frames):
        found = cache.read(shard.name, row, "key")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))
    sizes = [sum(len(one) for one in frames) * 4 * width for width in (2, 4)]
    files = [next((tmp_path / name).glob("*.frames.npy")) for name in ("half", "single")]
    assert [np.load(file).nbytes for file in files] == sizes


@pytest.mark.parametrize(
    ("value", "frame_type", "words"),
    [
        (
            70_000.0,
            "float16",
            r"go up to 7e\+04, which float16 \(at most 65504\) does not hold. Set data.feature_cache_dtype",
        ),
        (-np.inf, "float32", "go up to inf, which float32 .* Look at the encoder's weights"),
        (np.nan, "float16", "go up to nan, .* Look at the encoder's weights"),
    ],
)
def test_frame_that_its_type_does_not_hold_is_refused(
    tmp_path: Path, shard: ShardEntry, value: float, frame_type: str, words: str
):
    frames = frames_of(shard)
    frames[2][0, 1] = value
    with pytest.raises(ConfigError, match=words):
        write(tmp_path, shard, frame_type, rows=list(enumerate(frames)))
    assert not has_frames(tmp_path, shard)
    assert not list(tmp_path.glob("*.npy"))


def test_writer_that_ends_early_leaves_nothing(tmp_path: Path, shard: ShardEntry):
    def broken():
        yield 0, np.zeros((2, 4), np.float32)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write(tmp_path, shard, rows=broken())
    assert not has_frames(tmp_path, shard)
    assert list(tmp_path.iterdir()) == []


def test_frames_without_their_index_or_of_other_bytes_of_the_shard_are_not_there(tmp_path: Path, shard: ShardEntry):
    write(tmp_path, shard)
    assert not has_frames(tmp_path, replace(shard, sha256="0" * 64))
    next(tmp_path.glob("*.index.npy")).unlink()
    assert not has_frames(tmp_path, shard)


def test_file_that_was_cut_is_not_there(tmp_path: Path, shard: ShardEntry):
    write(tmp_path, shard)
    file = next(tmp_path.glob("*.frames.npy"))
    file.write_bytes(file.read_bytes()[:-8])
    assert not has_frames(tmp_path, shard)


def test_flipped_bit_is_noticed_in_the_row_that_it_is_in(tmp_path: Path, shard: ShardEntry):
    frames = write(tmp_path, shard)
    cache = FrameCache(tmp_path, [shard])
    file = next(tmp_path.glob("*.frames.npy"))
    flip(file, file.stat().st_size - 3)
    last = min(range(len(frames)), key=lambda row: (len(frames[row]), -row))  # the shortest were written last
    with pytest.raises(ShardError, match=r"frames of 'that one' are damaged. Remove the file"):
        cache.read(shard.name, last, "that one")
    others = [row for row in range(len(frames)) if row != last]
    assert all(np.array_equal(cache.read(shard.name, row, "key"), frames[row]) for row in others)
