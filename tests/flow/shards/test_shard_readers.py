"""Shards are plain WebDataset: other people's readers get every utterance, its audio and its JSON."""

import dataclasses
import gc
import io
import json
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import webdataset

from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards import ShardSet, open_shard_set
from ccts_dist.shards.format.schema import escape_key
from ccts_dist.shards.merge import merge_shards
from tests.helpers.examples.shard_examples import build_example, example_cache, example_output, make_utterances

LONG = "長" * 60  # 540 bytes once escaped: needs an extended tar header

NUMBER, TEXT = datasets.Value("float64"), datasets.Value("string")
BY_TARGET = dict.fromkeys(DIMENSIONS, NUMBER)
FEATURES = {
    # Bytes: without features given, datasets would decode, for which it needs torchcodec.
    "flac": datasets.Value("binary"),
    "json": {
        "key": TEXT,
        "split": TEXT,
        "transcript": TEXT,
        "transcript_confidence": NUMBER,
        "labels": BY_TARGET,
        "label_variance": BY_TARGET,
        "num_raters": datasets.Value("int64"),
        "scale": datasets.List(NUMBER),
        "speaker": TEXT,
        "gender": TEXT,
        "category": TEXT,
        "duration_s": NUMBER,
        "num_samples": datasets.Value("int64"),
        "source": TEXT,
    },
    "__key__": TEXT,
    "__url__": TEXT,
}


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    made = make_utterances(tmp_path_factory.mktemp("corpus"), 30)
    return [*made[:3], dataclasses.replace(made[3], key=LONG), *made[4:]]


@pytest.fixture(scope="module")
def shard_set(utterances: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root = tmp_path_factory.mktemp("shards")
    build_example(utterances, root, utterances[0].audio.parent)
    return open_shard_set(root)


def paths_of(shard_set: ShardSet) -> list[str]:
    paths = [str(shard_set.path(shard.name)) for shard in shard_set.manifest.shards]
    assert len(paths) > 2
    return paths


def read_with_webdataset(shard_set: ShardSet) -> list[dict]:
    """Every sample, undecoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves open tars to the garbage collector
        samples = list(webdataset.WebDataset(paths_of(shard_set), shardshuffle=False))  # pyright: ignore
        gc.collect()
    return samples


def check_utterance(utterance: Utterance, flac: bytes, record: dict) -> None:
    wanted, _ = soundfile.read(utterance.audio, dtype="int16")
    found, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    np.testing.assert_array_equal(found, wanted)
    assert (rate, record["key"], record["split"]) == (16_000, utterance.key, utterance.split)
    assert (record["transcript"], record["speaker"]) == (utterance.transcript, utterance.speaker)
    assert {target: label for target, label in record["labels"].items() if label is not None} == utterance.labels
    assert record["duration_s"] == len(wanted) / 16_000


def test_webdataset_reads_every_utterance(utterances: list[Utterance], shard_set: ShardSet):
    by_key = {escape_key(utterance.key): utterance for utterance in utterances}
    samples = read_with_webdataset(shard_set)
    assert sorted(sample["__key__"] for sample in samples) == sorted(by_key)
    for sample in samples:
        assert {name for name in sample if not name.startswith("_")} == {"flac", "json"}
        check_utterance(by_key[sample["__key__"]], sample["flac"], json.loads(sample["json"]))


def test_webdataset_reads_the_teacher_in_merged_shards(
    utterances: list[Utterance], shard_set: ShardSet, tmp_path: Path
):
    cache = example_cache(tmp_path / "cache", shard_set)
    merge_shards(shard_set, cache, tmp_path / "merged")
    by_key = {escape_key(utterance.key): utterance for utterance in utterances}
    merged = open_shard_set(tmp_path / "merged")
    samples = read_with_webdataset(merged)
    assert len(samples) == len(utterances)
    for sample in samples:
        vector = np.load(io.BytesIO(sample["teacher.npy"]), allow_pickle=False)
        output = example_output(by_key[sample["__key__"]].key)
        np.testing.assert_array_equal(vector, np.concatenate([output.embedding, output.prediction]))


def test_datasets_reads_every_utterance(utterances: list[Utterance], shard_set: ShardSet, tmp_path: Path):
    by_key = {escape_key(utterance.key): utterance for utterance in utterances}
    files = {"train": paths_of(shard_set)}
    features = datasets.Features(FEATURES)
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, split="train", features=features, cache_dir=str(tmp_path)
    )
    assert sorted(loaded["__key__"]) == sorted(by_key)
    for sample in loaded.to_list():
        check_utterance(by_key[sample["__key__"]], sample["flac"], sample["json"])


def test_datasets_streams_merged_shards(utterances: list[Utterance], shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    merge_shards(shard_set, cache, tmp_path / "merged")
    paths = paths_of(open_shard_set(tmp_path / "merged"))
    features = datasets.Features({**FEATURES, "teacher.npy": datasets.List(datasets.Value("float32"))})
    samples = list(
        datasets.load_dataset(
            "webdataset", data_files={"train": paths}, split="train", features=features, streaming=True
        )
    )
    by_key = {escape_key(utterance.key): utterance for utterance in utterances}
    assert len(samples) == len(utterances)
    for sample in samples:
        utterance = by_key[sample["__key__"]]
        check_utterance(utterance, sample["flac"], sample["json"])
        np.testing.assert_array_equal(sample["teacher.npy"][:5], example_output(utterance.key).embedding)


def test_datasets_counts_every_utterance_without_being_reported_the_features(
    utterances: list[Utterance], tmp_path: Path
):
    known = [u for u in utterances if u.speaker and len(u.labels) == 3]  # what is null at first is null for ever there
    build_example(known, tmp_path / "shards", known[0].audio.parent)
    files = {"train": paths_of(open_shard_set(tmp_path / "shards"))}
    loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["__key__"]) == sorted(escape_key(u.key) for u in known)


def test_datasets_sees_the_splits_of_a_folder(utterances: list[Utterance], shard_set: ShardSet, tmp_path: Path):
    """And the columns: what is null in the first utterances is not null for ever."""
    folder = shard_set.path(shard_set.manifest.shards[0].name).parent
    splits = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    counted = {split: totals.num_utterances for split, totals in shard_set.manifest.splits.items()}
    assert {split: len(rows) for split, rows in splits.items()} == counted
    assert len(counted) > 1
    by_key = {escape_key(utterance.key): utterance for utterance in utterances}
    for rows in splits.values():
        for sample in rows.cast_column("flac", datasets.Audio(decode=False)).to_list():
            check_utterance(by_key[sample["__key__"]], sample["flac"]["bytes"], sample["json"])


def test_datasets_sees_the_teacher_in_a_folder_of_merged_shards(
    utterances: list[Utterance], shard_set: ShardSet, tmp_path: Path
):
    merge_shards(shard_set, example_cache(tmp_path / "cache", shard_set), tmp_path / "merged")
    rows = datasets.load_dataset(str(tmp_path / "merged"), split="Train", cache_dir=str(tmp_path / "hf"))
    by_key = {escape_key(utterance.key): utterance for utterance in utterances}
    for sample in rows.cast_column("flac", datasets.Audio(decode=False)).to_list():
        output = example_output(by_key[sample["__key__"]].key)
        np.testing.assert_array_equal(sample["teacher.npy"][:5], output.embedding)
