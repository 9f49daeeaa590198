"""Keys of run files from before 0.2.0 are read as today's, with one line that names them."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

from ccts_dist.config import ModelConfig, RunConfig, parse_model, parse_run, read_run
from ccts_dist.config.renamed import RENAMED
from ccts_dist.errors import ConfigError

OLD: dict[str, Any] = {
    "name": "r",
    "output": "o",
    "data": {"shards": "s", "teacher": "c", "damaged": "stop", "workers": 2, "cache_gb": 3.0},
    "model": {
        "embedding": 4,
        "speech": {"encoder": "e", "normalise": "on", "spec_augment": {"time_probability": 0.25}},
        "also": [{"encoder": "filterbank", "filterbank": {"bins": 20}}, {"encoder": "e", "train_front_end": True}],
        "text": {"encoder": "scratch", "scratch": {"model_type": "bert", "also": 1}, "vocabulary": 50},
    },
    "batch": {"global_utterances": 8},
    "distill": {"distance": "norm", "prediction_distance": "squared"},
    "tracking": {"kind": "none", "register": "m"},
}
NEW: dict[str, Any] = {
    "run_name": "r",
    "output_dir": "o",
    "data": {"shards": "s", "teacher_cache": "c", "on_corrupt": "raise", "num_workers": 2, "shard_cache_gb": 3.0},
    "model": {
        "embedding_dim": 4,
        "speech": {"encoder": "e", "do_normalize": "on", "spec_augment": {"mask_time_prob": 0.25}},
        "extra_speech": [
            {"encoder": "filterbank", "filterbank": {"num_mel_bins": 20}},
            {"encoder": "e", "train_feature_encoder": True},
        ],
        "text": {"encoder": "scratch", "scratch": {"model_type": "bert", "also": 1}, "vocab_size": 50},
    },
    "batch": {"global_batch_size": 8},
    "distill": {"embedding_loss": "l2", "prediction_loss": "mse"},
    "tracking": {"backend": "none", "registered_model_name": "m"},
}


def test_run_of_old_keys_is_that_of_their_new_ones_and_one_line_names_them(capsys: pytest.CaptureFixture[str]):
    assert parse_run(OLD, source="old.toml") == parse_run(NEW)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("old.toml: warning: ")
    assert "data.teacher is now data.teacher_cache" in line
    assert "model.extra_speech.filterbank.bins is now model.extra_speech.filterbank.num_mel_bins" in line


def test_model_of_old_keys_is_that_of_their_new_ones(capsys: pytest.CaptureFixture[str]):
    assert parse_model(OLD["model"], source="model.json") == parse_model(NEW["model"])
    assert "model.embedding is now model.embedding_dim" in capsys.readouterr().err


def test_today_s_keys_give_no_warning(capsys: pytest.CaptureFixture[str]):
    parse_run(NEW)
    assert capsys.readouterr().err == ""


def test_old_key_beside_its_new_one_is_refused():
    with pytest.raises(ConfigError, match=r"f: batch.global_utterances is now batch.global_batch_size, and both"):
        parse_run({**NEW, "batch": {"global_utterances": 8, "global_batch_size": 8}}, source="f")


def test_override_under_an_old_key_sets_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.toml"
    path.write_text(
        'run_name = "r"\noutput_dir = "o"\n[data]\nshards = "s"\nteacher_cache = "c"\n[model.speech]\nencoder = "e"\n'
    )
    run = read_run(path, ["distill.distance='norm'", "data.teacher=other", "model.speech.normalise=off"])
    assert run.distill is not None
    assert (run.distill.embedding_loss, run.data.teacher_cache) == ("l2", "other")
    assert run.model.speech is not None
    assert run.model.speech.do_normalize == "off"
    assert (
        "--set data.teacher=other: warning: data.teacher is now data.teacher_cache; rename it"
        in capsys.readouterr().err
    )


def tables(cls: type, path: str = "") -> dict[str, set[str]]:
    """The keys of each table of a configuration."""
    found = {path: {f.name for f in dataclasses.fields(cls)}}
    for name, hint in typing.get_type_hints(cls).items():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                found |= tables(typing.cast(type, inner), f"{path}.{name}".lstrip("."))
    return found


def test_every_new_name_is_a_key_and_no_old_name_is():
    keys = tables(RunConfig)
    assert keys.keys() >= RENAMED.keys()
    assert "model.extra_speech" in keys
    assert ModelConfig
    for table, names in RENAMED.items():
        assert set(names.values()) <= keys[table]
        assert not set(names) & keys[table]
