"""The page of all keys is the one that the dataclasses give, and states something of each of them."""

import typing
from pathlib import Path

import pytest

from ccts_dist.config import DistillConfig, OptimConfig, SpeechConfig
from ccts_dist.config.reference import page
from ccts_dist.model.encoder_check import KNOWN_TYPES
from ccts_dist.model.encoders import SPEECH_TYPES

PAGE = Path("launch/runs/README.md")


def test_page_is_that_of_the_dataclasses():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m ccts_dist.config.reference > launch/runs/README.md"


def test_every_key_stands_there_with_its_range_its_default_and_a_meaning():
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    for row in rows:
        key, value, default, meaning = (cell.strip() for cell in row.strip("|").replace("\\|", "/").split("|"))
        assert key.startswith("`")
        assert value
        assert default
        assert meaning, f"{key} has no meaning"
    by_key = {row.split("`")[1]: row for row in rows}
    assert '| `"mse"`, `"l2"`, `"cosine"` | `"l2"` |' in by_key["embedding_loss"]
    assert "| whole number, at least 3 | `128` |" in by_key["max_tokens"]
    assert "| list: number | `[]` |" in by_key["target_weights"]
    assert "| **needed** |" in by_key["shards"]
    assert "| number, at least 0 or absent | absent |" in by_key["speech_lr_scale"]
    assert "| list: whole number, at least 1 | `[64, 64]` |" in by_key["channels"]
    assert "## `[[model.extra_speech]]`" in page()


def meaning_of(table: str, key: str) -> str:
    section = page().split(f"## `[{table}]`\n")[1].split("\n## ")[0]
    (row,) = (line for line in section.splitlines() if line.startswith(f"| `{key}` |"))
    return row.strip("| ").replace("\\|", "/").split(" | ")[3]


def test_meaning_of_an_encoder_names_every_type_that_is_taken():
    reported = meaning_of("model.speech", "encoder")
    assert [name for name in (*SPEECH_TYPES, *KNOWN_TYPES) if f'"{name}"' not in reported] == []


@pytest.mark.parametrize(
    ("table", "config", "key"),
    [
        ("optim", OptimConfig, "lr_scheduler"),
        ("distill", DistillConfig, "gate"),
        ("model.speech", SpeechConfig, "pooling"),
    ],
)
def test_every_choice_has_words_of_its_own_in_the_meaning(table: str, config: type, key: str):
    choices = typing.get_args(typing.get_type_hints(config)[key])
    assert len(choices) >= 4
    reported = meaning_of(table, key)
    assert [choice for choice in choices if f'"{choice}"' not in reported] == []
