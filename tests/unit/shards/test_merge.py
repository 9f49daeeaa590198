"""Merged shards: the same utterances in the same order, with the teacher's outputs beside."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.errors import ConfigError, ShardError, TeacherError
from ccts_dist.shards import (
    ShardSet,
    TeacherCache,
    open_merged_teacher,
    open_shard_set,
    open_teacher_cache,
    read_member,
)
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.merge import merge_shards
from tests.helpers.examples.shard_examples import example_cache, example_shard_set, flip_bit

SHARD = "Train-000000.tar"


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return example_shard_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def cache(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    return example_cache(tmp_path_factory.mktemp("cache"), shard_set)


@pytest.fixture
def merged(shard_set: ShardSet, cache: TeacherCache, tmp_path: Path) -> ShardSet:
    seen: list[int] = []
    digest = merge_shards(shard_set, cache, tmp_path / "merged", progress=seen.append)
    assert sum(seen) == len(shard_set.manifest.shards)
    merged = open_shard_set(tmp_path / "merged")
    assert merged.digest == digest
    return merged


def test_merged_shards_hold_the_same_rows_and_the_same_bytes(
    shard_set: ShardSet, cache: TeacherCache, merged: ShardSet
):
    for plain, mixed in zip(shard_set.manifest.shards, merged.manifest.shards, strict=True):
        assert dataclasses.replace(mixed, size_bytes=plain.size_bytes, sha256=plain.sha256, index=plain.index) == plain
        rows, theirs = shard_set.rows(plain.name), merged.rows(plain.name)
        assert theirs.keys == rows.keys
        np.testing.assert_array_equal(theirs.num_samples, rows.num_samples)
        for target, label in rows.labels.items():
            np.testing.assert_array_equal(theirs.labels[target], label)
        assert tuple(theirs.members) == ("flac", "json", "teacher.npy")
        for member in ("flac", "json"):
            for row, key in enumerate(rows.keys):
                read = [
                    read_member(each.path(plain.name), where.members[member], row, key=key, member=member)
                    for each, where in ((shard_set, rows), (merged, theirs))
                ]
                assert read[0] == read[1]


def test_the_merged_teacher_is_the_cache(shard_set: ShardSet, cache: TeacherCache, merged: ShardSet):
    teacher = open_merged_teacher(merged)
    assert (teacher.digest, teacher.condition, teacher.targets) == (cache.digest, cache.condition, cache.targets)
    np.testing.assert_array_equal(teacher.embedding_mean, cache.embedding_mean)
    np.testing.assert_array_equal(teacher.embedding_std, cache.embedding_std)
    for shard in shard_set.manifest.shards:
        for row, key in enumerate(shard_set.rows(shard.name).keys):
            assert teacher.read_bytes(shard.name, row, key) == cache.read_bytes(shard.name, row, key)


def test_a_merged_set_has_the_content_of_its_source_and_passes_the_checker(
    shard_set: ShardSet, cache: TeacherCache, merged: ShardSet
):
    assert merged.content_digest == shard_set.digest
    assert merged.digest != shard_set.digest
    assert check_shard_set(merged.root) == []
    assert check_shard_set(merged.root, cache.root) == []
    assert open_teacher_cache(cache.root, merged).digest == cache.digest  # the side-car fits the merged set too


def test_a_merge_is_deterministic_and_done_once(
    shard_set: ShardSet, cache: TeacherCache, merged: ShardSet, tmp_path: Path
):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in merged.root.iterdir()}
    assert merge_shards(shard_set, cache, merged.root) == merged.digest
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in merged.root.iterdir()}
    assert merge_shards(shard_set, cache, tmp_path / "again") == merged.digest


def test_damage_in_a_merged_shard_is_found_and_named(merged: ShardSet):
    rows = merged.rows(SHARD)
    flip_bit(merged.path(SHARD), int(rows.members["teacher.npy"].offset[0]) + 130)
    key = rows.keys[0]
    assert [str(finding) for finding in check_shard_set(merged.root)] == [
        f"{SHARD} {key} teacher.npy is damaged (its CRC-32 differs)"
    ]
    with pytest.raises(TeacherError, match=rf"{SHARD}: teacher.npy of '{key}' is damaged"):
        open_merged_teacher(merged).read(SHARD, 0, key)
    (merged.root / "condition.json").write_text(json.dumps({}))
    with pytest.raises(TeacherError, match=r"condition\.json: is not the one that the manifest names"):
        open_merged_teacher(merged)


def test_a_cache_of_other_shards_cannot_be_merged(cache: TeacherCache, tmp_path: Path):
    other = example_shard_set(tmp_path, count=8)
    with pytest.raises(TeacherError, match="the cache was made for shard set"):
        open_teacher_cache(cache.root, other)


def test_a_merge_into_a_folder_that_holds_something_else_is_refused(
    shard_set: ShardSet, cache: TeacherCache, merged: ShardSet, tmp_path: Path
):
    for root in (shard_set.root, cache.root):
        with pytest.raises(ConfigError, match="holds what is to be merged"):
            merge_shards(shard_set, cache, root)
    other = example_shard_set(tmp_path, count=8)
    with pytest.raises(ConfigError, match="holds another shard set"):
        merge_shards(shard_set, cache, other.root)
    with pytest.raises(ShardError, match="carries teacher outputs already"):
        merge_shards(merged, cache, tmp_path / "twice")
    with pytest.raises(ConfigError, match="pipe: URLs run a shell"):
        merge_shards(shard_set, cache, "pipe:cat")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/x: cannot be made \(Not a directory\)"):
        merge_shards(shard_set, cache, tmp_path / "file" / "x")
    with pytest.raises(ConfigError, match=r"file: cannot be made \(File exists\)"):
        merge_shards(shard_set, cache, tmp_path / "file")


def test_a_merge_of_damaged_shards_stops_and_leaves_no_shard_set(cache: TeacherCache, tmp_path: Path):
    damaged = example_shard_set(tmp_path)
    rows = damaged.rows(SHARD)
    flip_bit(damaged.path(SHARD), int(rows.members["flac"].offset[0]))
    with pytest.raises(ShardError, match=f"{SHARD}: flac of '{rows.keys[0]}' is damaged"):
        merge_shards(damaged, cache, tmp_path / "merged")
    assert not (tmp_path / "merged" / "manifest.json").exists()
