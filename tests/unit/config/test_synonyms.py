"""Keys by their names elsewhere, and a run named without an option."""

import re
from pathlib import Path

import pytest

from ccts_dist.config import parse_run
from ccts_dist.config.schema import RunConfig
from ccts_dist.config.synonyms import SYNONYMS, _keys, key_meant
from ccts_dist.errors import ConfigError
from launch import train as command

KEYS = set(_keys(RunConfig, ""))


def test_every_synonym_means_keys_that_there_are():
    assert len(SYNONYMS) > 40
    for name, meant in SYNONYMS.items():
        dotted = re.sub(r"\([^)]*\)", "", meant).split(" or ")
        assert {key.strip() for key in dotted} <= KEYS, name
        assert name not in KEYS


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "optim.learning_rate"),
        ("LR", "optim.learning_rate"),
        ("epochs", "train.epochs"),
        ("max-epochs", "train.epochs"),
        ("seed", "seed"),
        ("encoder", "model.speech.encoder or model.text.encoder"),
        ("batch_size", "batch.global_batch_size (of an optimizer step) or batch.micro_batch_size (of a forward pass)"),
        ("trainable", "model.speech.trainable or model.text.trainable"),
        ("zzz", ""),
    ],
)
def test_key_of_elsewhere_is_known(key: str, meant: str):
    assert key_meant(key) == meant


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lr": 0.1}, r"unknown key lr = 0\.1\. Did you mean optim\.learning_rate\?$"),
        ({"train": {"seed": 3}}, r"unknown key train\.seed = 3\. Did you mean seed\?$"),
        ({"optim": {"epochs": 3}}, r"Did you mean train\.epochs\?$"),
        ({"train": {"epoch": 3}}, r"Did you mean 'epochs'\?$"),
        ({"batch": {"batch_size": 3}}, r"batch\.global_batch_size \(of an optimizer step\) or batch\.micro_batch_size"),
    ],
)
def test_error_of_an_unknown_key_names_the_key_that_is_meant(sections: dict, words: str):
    run = {"run_name": "r", "output_dir": "o", "data": {"shards": "s"}, "model": {"speech": {"encoder": "e"}}}
    with pytest.raises(ConfigError, match=words):
        parse_run(run | sections)


def test_run_file_and_keys_are_named_in_any_order():
    expected = ["optim.learning_rate=1e-4", "train.epochs=3"]
    for words in (
        ["RUN.toml", *expected, "--resume", "auto"],
        ["--local_rank=1", "RUN.toml", expected[0], "--resume", "auto", expected[1]],
        [*expected, "RUN.toml", "--resume", "auto"],
        ["--config", "RUN.toml", "--set", expected[0], "--resume", "auto", expected[1]],
    ):
        args = command.parse_args(words)
        assert (args.config, args.set, args.resume) == (Path("RUN.toml"), expected, "auto")


def test_run_file_may_have_an_equals_sign(tmp_path: Path):
    (tmp_path / "lr=1.toml").touch()
    args = command.parse_args([str(tmp_path / "lr=1.toml"), "seed=3"])
    assert (args.config, args.set) == (tmp_path / "lr=1.toml", ["seed=3"])


@pytest.mark.parametrize("words", [[], ["seed=3"], ["a.toml", "b.toml"], ["a.toml", "--config", "b.toml"]])
def test_one_run_file_is_named(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command.parse_args(words)
    assert ended.value.code == 2
    assert "give one run file" in capsys.readouterr().err
