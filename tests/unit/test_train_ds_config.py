"""Each number has one owner: what the run file decides cannot stand in a ds_config."""

import json
from pathlib import Path

import pytest

from ccts_dist.config import parse_run
from ccts_dist.errors import ConfigError
from ccts_dist.train.ds_config import OWNED_BY_RUN_FILE, read_ds_config, resolve_ds_config

SHIPPED = sorted(Path("ds_configs").glob("*.json"))


def test_there_are_shipped_files():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_is_accepted(path):
    assert read_ds_config(path)["zero_optimization"]["stage"] in (0, 1, 2, 3)


@pytest.mark.parametrize("key", sorted(OWNED_BY_RUN_FILE))
def test_literal_value_that_the_run_file_owns_is_refused(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: {"enabled": True}}))
    with pytest.raises(ConfigError, match=f'ds.json: {key} = .* must be "auto" or absent'):
        read_ds_config(path)
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: "auto"}))
    read_ds_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"zero_optimization": 2}', "stage = null: must be 0, 1, 2 or 3"),
        ("{}", "stage = null: must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 4}}', "stage = 4: must be 0, 1, 2 or 3"),
    ],
)
def test_unusable_file_is_the_users_mistake(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_ds_config(path)


def test_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(ConfigError, match="cannot read it"):
        read_ds_config(tmp_path / "none.json")


def test_run_files_numbers_are_filled_in():
    run = parse_run(
        {
            "name": "r",
            "output": "o",
            "data": {"shards": "s"},
            "model": {"speech": {"encoder": "e"}},
            "batch": {"global_utterances": 64, "micro_utterances": 8},
            "optim": {"clip_norm": 0.5},
            "train": {"precision": "bf16"},
        }
    )
    resolved = resolve_ds_config({"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}, run, passes=4)
    assert resolved["train_micro_batch_size_per_gpu"] == 8
    assert resolved["gradient_accumulation_steps"] == 4
    assert resolved["gradient_clipping"] == 0.5
    assert resolved["bf16"] == {"enabled": True}
