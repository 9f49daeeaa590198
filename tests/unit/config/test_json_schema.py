"""The JSON schema of run files takes what the reader takes, and is the file that stands beside them."""

import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from ccts_dist.commands import schema
from ccts_dist.config import parse_run
from ccts_dist.config.json_schema import run_schema, schema_text
from ccts_dist.errors import ConfigError

FILE = Path("launch/runs/schema.json")
RUN_FILES = sorted(Path("launch/runs").rglob("*.toml"))
VALIDATOR = jsonschema_rs.validator_for(run_schema())


def tree(path: Path = Path("launch/runs/demo/cts.toml")) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_file_is_that_of_the_dataclasses():
    assert FILE.read_text(encoding="utf-8") == schema_text(), f"ccts schema > {FILE}"


def test_schema_is_one():
    jsonschema_rs.meta.validate(run_schema())


@pytest.mark.parametrize("path", RUN_FILES, ids=str)
def test_every_shipped_run_file_is_valid(path: Path):
    assert len(RUN_FILES) >= 25
    VALIDATOR.validate(tree(path))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("", "sead", 1),
        ("", "seed", -1),
        ("", "seed", "1"),
        ("", "model", 3),
        ("data", "shard", "x"),
        ("data", "shards", 3),
        ("data", "train_splits", "Train"),
        ("optim", "learning_rate", 0),
        ("optim", "name", "adagrad"),
        ("train", "async_save", 1),
        ("train", "epochs", 1.5),
        ("model", "dropout", 1.5),
        ("model", "extra_speech", {}),
        ("model", "targets", [1]),
    ],
)
def test_what_the_reader_refuses_is_invalid(table: str, key: str, value: Any):
    run = tree()
    part = run.setdefault(table, {}) if table else run
    part[key] = value
    assert not VALIDATOR.is_valid(run)
    with pytest.raises(ConfigError, match=key):
        parse_run(run)


def test_missing_key_is_invalid_and_a_whole_number_is_a_number():
    run = tree()
    run["optim"]["learning_rate"] = 1
    assert VALIDATOR.is_valid(run)
    del run["data"]["shards"]
    assert not VALIDATOR.is_valid(run)


def test_keys_have_meaning_range_and_default():
    epochs = run_schema()["$defs"]["TrainConfig"]["properties"]["epochs"]
    assert epochs == {
        "type": "integer", "minimum": 1, "default": 50,
        "description": "Number of epochs, each over every training utterance once.",
    }  # fmt: skip
    assert run_schema()["required"] == ["run_name", "output_dir", "data", "model"]


def test_command_prints_it(capsys: pytest.CaptureFixture[str]):
    assert schema.main([]) == 0
    assert capsys.readouterr().out == schema_text()
