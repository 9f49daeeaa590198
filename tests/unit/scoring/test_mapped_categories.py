"""A model with ``model.category_map`` is evaluated on the corpus's categories as its map has them."""

from pathlib import Path

import pytest
import torch

from ccts_dist.config import ModelConfig, parse_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.model import build_model, save_model
from ccts_dist.scoring.evaluator import Evaluator
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.train.steps.trainable_loss import check_labels
from tests.helpers.examples.tones import build_tones
from tests.helpers.models.model_shapes import speech_config

NAMES = ("calm", "Sad")


def saved(folder: Path, category_map: dict[str, str]) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(embedding_dim=4, categories=NAMES, category_map=category_map, speech=speech_config())
    model = build_model(config)
    save_model(
        folder, model.state_dict(), config, encoders=model.encoder_configs, tokenizer=None, scale=(1.0, 7.0), extra={}
    )
    return folder


def test_scores_and_table_have_the_categories_of_the_map(tmp_path: Path):
    build_tones(tmp_path)
    model = saved(tmp_path / "model", {"Happy": "calm", "not in this corpus": "calm"})
    split = Evaluator(model, tmp_path / "shards", ranks=Ranks(), workers=0).split("Test1")
    numbers = [int(key.removeprefix("u.")) for key in split.table.keys]
    assert split.table.categories == tuple({0: "calm", 1: "Sad", 2: None}[number % 3] for number in numbers)
    assert {name: sum(row) for name, row in split.scores.confusion.items()} == {"calm": 1, "Sad": 2}


def test_without_the_map_the_corpus_lacks_the_category_and_it_is_not_scored(tmp_path: Path):
    build_tones(tmp_path)
    split = Evaluator(saved(tmp_path / "model", {}), tmp_path / "shards", ranks=Ranks(), workers=0).split("Test1")
    assert split.scores.categories == {}
    assert split.table.categories == ()


def test_training_on_categories_alone_counts_them_after_the_map(tmp_path: Path):
    shard_set = open_shard_set(build_tones(tmp_path))

    def run(category_map: dict[str, str]):
        return parse_run(
            {
                "run_name": "r",
                "output_dir": "o",
                "data": {"shards": "s", "valid_splits": ["Test1"], "test_splits": []},
                "model": {"speech": {"encoder": "e"}, "targets": [], "categories": list(NAMES),
                          "category_map": category_map},
                "batch": {"global_batch_size": 2, "micro_batch_size": 1},
            }
        )  # fmt: skip

    check_labels(run({"Happy": "calm"}), shard_set)
    with pytest.raises(ConfigError, match=r"has utterances of .* and telling them apart needs two"):
        check_labels(run({"Happy": "Sad"}), shard_set)
