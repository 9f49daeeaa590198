"""The README.md of a shard set names splits and columns for datasets; the set is as sound without it."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from ccts_dist.shards import open_shard_set
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.format.dataset_card import CARD_NAME, dataset_card, split_names
from ccts_dist.shards.merge import merge_shards
from tests.helpers.examples.shard_examples import build_example, example_cache, example_shard_set, make_utterances


def test_splits_are_patterns_that_take_no_other_split_s_tars(tmp_path: Path) -> None:
    shard_set = example_shard_set(tmp_path)
    root = tmp_path / "shards"
    card = DatasetCard.load(root / CARD_NAME)
    (config,) = card.data.configs
    found = {one["split"]: one["path"] for one in config["data_files"]}
    assert found["Train"] == ["Train-[0-9][0-9][0-9][0-9][0-9][0-9].tar"]
    for split, patterns in found.items():
        tars = {path.name for pattern in patterns for path in root.glob(pattern)}
        assert tars == {shard.name for shard in shard_set.manifest.shards if shard.split == split}
    features = {one["name"] for one in card.data.dataset_info["features"]}
    assert features == {"flac", "json", "__key__", "__url__"}
    assert "The licence of the corpus binds" in card.text


def test_names_of_splits_are_such_as_datasets_takes_and_differ() -> None:
    assert split_names(["Train", "Test1"]) == {"Train": "Train", "Test1": "Test1"}
    names = split_names(["a b", "a-b", "a_b", "fold.1", "ä..b"])
    assert names == {"a b": "a_b", "a-b": "a_b_2", "a_b": "a_b_3", "fold.1": "fold.1", "ä..b": "ä_b"}


@pytest.mark.parametrize("change", ["removed", "another"])
def test_a_set_without_it_is_sound_and_has_the_same_digest(tmp_path: Path, change: str) -> None:
    shard_set = example_shard_set(tmp_path)
    root = tmp_path / "shards"
    assert list(check_shard_set(root)) == []
    if change == "removed":
        (root / CARD_NAME).unlink()
    else:
        (root / CARD_NAME).write_text("my own words")
    assert open_shard_set(root).digest == shard_set.digest
    assert list(check_shard_set(root)) == []


def test_a_readme_of_the_user_s_own_stays(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / CARD_NAME).write_text("my own words")
    utterances = make_utterances(tmp_path / "corpus", 6)
    build_example(utterances, tmp_path / "shards", tmp_path / "corpus")
    assert (tmp_path / "shards" / CARD_NAME).read_text() == "my own words"


def test_a_merged_set_has_one_with_the_teacher(tmp_path: Path) -> None:
    shard_set = example_shard_set(tmp_path / "set")
    merge_shards(shard_set, example_cache(tmp_path / "cache", shard_set), tmp_path / "merged")
    written = (tmp_path / "merged" / CARD_NAME).read_bytes()
    assert written == dataset_card(open_shard_set(tmp_path / "merged").manifest)
    assert b"- name: teacher.npy\n    list: float32\n" in written


def test_a_set_without_targets_has_splits_and_leaves_the_columns_to_be_inferred(tmp_path: Path) -> None:
    manifest = replace(example_shard_set(tmp_path).manifest, targets=())
    data = DatasetCard(dataset_card(manifest).decode()).data.to_dict()
    assert "dataset_info" not in data
    assert {one["split"] for one in data["configs"][0]["data_files"]} == set(manifest.split_names)
