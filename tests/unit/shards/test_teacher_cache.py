"""The teacher cache: written whole, read by key, refused when it is of other shards."""

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError, TeacherError
from ccts_dist.records import TeacherOutput
from ccts_dist.shards import ShardSet, TeacherCache, open_merged_teacher, open_teacher_cache
from ccts_dist.shards.format.teacher_cache import decode_output, encode_output, read_cache_manifest
from ccts_dist.shards.teacher_cache import read_cached_outputs
from ccts_dist.shards.teacher_cache_writer import finished_cache_shards, write_cache_manifest, write_cache_shard
from tests.helpers.examples.shard_examples import (
    CONDITION,
    EMBEDDING_SIZE,
    TEACHER_DIGEST,
    build_example,
    example_cache,
    example_facts,
    example_output,
    example_shard_set,
    flip_bit,
    make_utterances,
    write_example_shards,
)

SHARD = "Train-000000.tar"


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return example_shard_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def cache(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    return example_cache(tmp_path_factory.mktemp("cache"), shard_set)


def assert_equal(output: TeacherOutput, wanted: TeacherOutput) -> None:
    np.testing.assert_array_equal(output.embedding, wanted.embedding)
    np.testing.assert_array_equal(output.prediction, wanted.prediction)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=9))
def test_outputs_come_back_from_their_bytes(numbers: list[float]):
    vector = np.array(numbers, np.float32)
    output = TeacherOutput(embedding=vector[:-2], prediction=vector[-2:])
    assert_equal(decode_output(encode_output(output), len(vector) - 2, 2), output)


def test_what_is_no_plain_float32_array_of_that_length_is_refused_and_never_unpickled(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds float32\[8\], must be float32\[9\]"):
        decode_output(encode_output(example_output("k")), 6, 3)
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    header = b"\x93NUMPY\x01\x00v\x00"
    for data in (
        pickle.dumps({}) + bytes(20),
        (tmp_path / "a.npy").read_bytes(),
        header + b"(" * 50,  # what NumPy's own reader makes a tokenizer's error of
        header + b"{'descr': '<f4', 'fortran_order': False, 'shape': (8888888888888,), }",
        encode_output(example_output("k"))[:-4],
    ):
        with pytest.raises(ValueError, match=r"is no float32\[9\] as NumPy writes it"):
            decode_output(data, 6, 3)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_refused(number: float):
    vector = np.zeros(4, np.float32)
    vector[1] = number
    with pytest.raises(ValueError, match="holds numbers that are not finite"):
        decode_output(encode_output(TeacherOutput(embedding=vector[:2], prediction=vector[2:])), 2, 2)


def test_every_utterance_has_its_output(shard_set: ShardSet, cache: TeacherCache):
    for shard in shard_set.manifest.shards:
        for row, key in enumerate(shard_set.rows(shard.name).keys):
            assert_equal(cache.read(shard.name, row, key), example_output(key))
    assert cache.condition == CONDITION
    assert (cache.embedding_size, cache.targets) == (EMBEDDING_SIZE, CONDITION.targets)
    np.testing.assert_array_equal(cache.embedding_mean, [0.0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(cache.embedding_std, np.ones(EMBEDDING_SIZE))


def test_a_copy_in_another_process_reads_the_same(shard_set: ShardSet, cache: TeacherCache):
    key = shard_set.rows(SHARD).keys[1]
    assert_equal(pickle.loads(pickle.dumps(cache)).read(SHARD, 1, key), example_output(key))


def test_equal_outputs_give_equal_bytes(shard_set: ShardSet, cache: TeacherCache, tmp_path: Path):
    again = example_cache(tmp_path / "again", shard_set)
    assert again.digest == cache.digest
    for path in sorted(again.root.iterdir()):
        if path.is_file():
            assert path.read_bytes() == (cache.root / path.name).read_bytes()


def test_an_unknown_shard_or_key_is_named(cache: TeacherCache):
    with pytest.raises(TeacherError, match=r"Test1-000000\.tar: not in .* Wanted: the teacher's output for 'k'"):
        cache.read("Test1-000000.tar", 0, "k")
    with pytest.raises(TeacherError, match=r"Train-000000\.tar: utterance 'k' has no teacher output in"):
        cache.read(SHARD, 0, "k")


def test_damage_is_named_by_shard_and_key(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    key = shard_set.rows(SHARD).keys[0]
    flip_bit(cache.root / SHARD, 512 + 130)
    with pytest.raises(TeacherError, match=rf"{SHARD}: teacher.npy of '{key}' is damaged .* Wanted: the teacher's"):
        cache.read(SHARD, 0, key)


def test_a_cache_that_states_another_size_is_refused_when_read(shard_set: ShardSet, tmp_path: Path):
    write_example_shards(tmp_path, shard_set)
    numbers = (1.0,) * 6
    facts = dataclasses.replace(example_facts(), embedding_size=6, embedding_mean=numbers, embedding_std=numbers)
    write_cache_manifest(tmp_path, shard_set, facts, splits=["Train"], condition=CONDITION, sums={})
    key = shard_set.rows(SHARD).keys[0]
    with pytest.raises(
        TeacherError, match=rf"{SHARD}: .* of '{key}' has 160 bytes, and the teacher's outputs have 164"
    ):
        open_teacher_cache(tmp_path, shard_set).read(SHARD, 0, key)


def test_a_cache_of_another_shard_set_is_refused_with_both_digests(cache: TeacherCache, tmp_path: Path):
    other = example_shard_set(tmp_path, count=8)
    made_for = read_cache_manifest(cache.store)[0].shard_set_digest
    with pytest.raises(TeacherError, match=f"for shard set {made_for[:12]}, and .* is {other.digest[:12]}"):
        open_teacher_cache(cache.root, other)


def test_a_folder_without_a_cache_a_damaged_and_a_newer_one_are_refused(shard_set: ShardSet, tmp_path: Path):
    with pytest.raises(TeacherError, match="no teacher cache here"):
        open_teacher_cache(tmp_path / "none", shard_set)
    with pytest.raises(ConfigError, match="pipe: addresses run a shell"):
        open_teacher_cache("pipe:cat", shard_set)
    cache = example_cache(tmp_path / "cache", shard_set)
    data = (cache.root / "manifest.json").read_bytes()
    (cache.root / "manifest.json").write_bytes(data.replace(b'"format_version": 2', b'"format_version": 3'))
    with pytest.raises(TeacherError, match="format version 3, and this installation reads 2"):
        open_teacher_cache(cache.root, shard_set)
    (cache.root / "manifest.json").write_bytes(data.replace(SHARD.encode(), b"../" + SHARD.encode()))
    with pytest.raises(TeacherError, match="is not a plain file name"):
        open_teacher_cache(cache.root, shard_set)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("index.arrow", r"index\.arrow: has 9 bytes, and the manifest states"),
        ("condition.json", r"condition\.json: is "),
    ],
)
def test_a_changed_or_missing_index_or_condition_is_refused(shard_set: ShardSet, tmp_path: Path, name: str, words: str):
    root = example_cache(tmp_path, shard_set).root
    os.truncate(root / name, 9)
    with pytest.raises(TeacherError, match=words):
        open_teacher_cache(root, shard_set)
    (root / name).unlink()
    with pytest.raises(TeacherError, match=f"{name}: is missing"):
        open_teacher_cache(root, shard_set)


def test_plain_shards_carry_no_teacher(shard_set: ShardSet):
    with pytest.raises(TeacherError, match="these shards carry no teacher outputs"):
        open_merged_teacher(shard_set)


def test_finished_shards_are_those_of_the_same_teacher_and_source_and_whole(shard_set: ShardSet, tmp_path: Path):
    write_example_shards(tmp_path, shard_set)
    names = {shard.name for shard in shard_set.manifest.shards}
    assert finished_cache_shards(tmp_path, shard_set, TEACHER_DIGEST) == names
    assert finished_cache_shards(tmp_path, shard_set, "0" * 64) == set()
    flip_bit(tmp_path / SHARD, 1000)
    write_cache_shard(tmp_path, "Train-000001.tar", "0" * 64, [], teacher_digest=TEACHER_DIGEST)
    (tmp_path / "Development-000000.tar").unlink()
    lost = {SHARD, "Train-000001.tar", "Development-000000.tar"}
    assert finished_cache_shards(tmp_path, shard_set, TEACHER_DIGEST) == names - lost
    (tmp_path / ".parts" / "Train-000002.tar.json").write_text("{")
    assert "Train-000002.tar" not in finished_cache_shards(tmp_path, shard_set, TEACHER_DIGEST)


def test_a_corpus_that_grows_keeps_what_is_cached_of_its_unchanged_shards(tmp_path: Path):
    small = example_shard_set(tmp_path / "a", count=12)
    cache = example_cache(tmp_path / "cache", small)
    build_example(make_utterances(tmp_path / "b", 20), tmp_path / "b" / "shards", tmp_path / "b")
    large = example_shard_set(tmp_path / "b", count=20)
    gate_mask = finished_cache_shards(cache.root, large, TEACHER_DIGEST)
    before = {shard.sha256 for shard in small.manifest.shards}
    unchanged = {shard.name for shard in large.manifest.shards if shard.sha256 in before}
    assert gate_mask == unchanged
    assert gate_mask
    with pytest.raises(TeacherError, match="it keeps what still fits"):
        open_teacher_cache(cache.root, large)


def test_writing_a_shard_takes_the_manifest_away_until_the_cache_is_whole_again(shard_set: ShardSet, tmp_path: Path):
    example_cache(tmp_path, shard_set)
    shard = shard_set.manifest.shards[0]
    outputs = [(key, example_output(key)) for key in shard_set.rows(shard.name).keys]
    write_cache_shard(tmp_path, shard.name, shard.sha256, outputs, teacher_digest=TEACHER_DIGEST)
    with pytest.raises(TeacherError, match="no teacher cache here"):
        open_teacher_cache(tmp_path, shard_set)


def test_a_cache_is_not_finished_while_shards_are_missing_or_hold_other_keys(shard_set: ShardSet, tmp_path: Path):
    shard = shard_set.manifest.shards[0]

    def finish() -> str:
        facts = example_facts()
        return write_cache_manifest(tmp_path, shard_set, facts, splits=["Train"], condition=CONDITION, sums={})

    tmp_path.joinpath(".parts").mkdir()
    with pytest.raises(TeacherError, match=rf"{SHARD}: not cached, or of another teacher or source shard"):
        finish()
    write_example_shards(tmp_path, shard_set)
    keys = shard_set.rows(shard.name).keys[::-1]
    outputs = [(key, example_output(key)) for key in keys]
    write_cache_shard(tmp_path, shard.name, shard.sha256, outputs, teacher_digest=TEACHER_DIGEST)
    with pytest.raises(TeacherError, match="its keys are not the source shard's"):
        finish()
    assert not (tmp_path / "manifest.json").exists()


def test_outputs_are_read_in_order_before_there_is_an_index(shard_set: ShardSet, tmp_path: Path):
    write_example_shards(tmp_path, shard_set)
    read = list(read_cached_outputs(tmp_path, SHARD, embedding_size=EMBEDDING_SIZE, num_targets=3))
    assert tuple(key for key, _ in read) == shard_set.rows(SHARD).keys
    for key, output in read:
        assert_equal(output, example_output(key))
    flip_bit(tmp_path / SHARD, 3)
    with pytest.raises(TeacherError, match=r"Delete it and run launch/cache_teacher.py again"):
        list(read_cached_outputs(tmp_path, SHARD, embedding_size=EMBEDDING_SIZE, num_targets=3))
