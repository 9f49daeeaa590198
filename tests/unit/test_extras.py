"""A package that only an extra installs: one line that names the extra, exit code 2, on all ranks alike."""

import importlib.util

import pytest

from ccts_dist.commands import train
from ccts_dist.distributed import run_on_all_ranks
from ccts_dist.errors import ConfigError, run_main
from ccts_dist.extras import missing_for_training, words_for_missing

LINES = {
    "deepspeed.ops": "the package deepspeed is not installed. Install the extra: pip install 'ccts-dist[train]'",
    "mlflow.entities": "the package mlflow is not installed. Install the extra: pip install 'ccts-dist[mlflow]'",
    "peft": "the package peft is not installed. Install the extra: pip install 'ccts-dist[lora]'",
    "tensorboard.compat": "the package tensorboard is not installed. Install the extra: "
    "pip install 'ccts-dist[tensorboard]'",
    "sqlalchemy": "the package mlflow is not installed. Install the extra: pip install 'ccts-dist[mlflow]'",
}


@pytest.mark.parametrize(("package", "line"), LINES.items())
def test_line_names_package_and_extra(package: str, line: str, capsys: pytest.CaptureFixture[str]):
    def main(_: list[str] | None) -> int:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    assert run_main(main) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    with pytest.raises(ConfigError, match=r"^the package "):
        run_on_all_ranks(lambda: main(None))


def test_any_other_package_that_is_missing_is_a_bug():
    def main(_: list[str] | None) -> int:
        raise ModuleNotFoundError("No module named 'mlflows'", name="mlflows")

    assert words_for_missing("mlflows") == ""
    with pytest.raises(ModuleNotFoundError):
        run_main(main)
    with pytest.raises(ModuleNotFoundError):
        run_on_all_ranks(lambda: main(None))


def test_training_looks_for_its_packages_before_it_starts(monkeypatch: pytest.MonkeyPatch):
    assert missing_for_training(backend="mlflow+tensorboard") == ""
    lacking = "mlflow"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else found(name))
    assert missing_for_training(backend="mlflow") == LINES["mlflow.entities"]
    assert missing_for_training(backend="tensorboard") == ""
    lacking = "tensorboard"
    assert missing_for_training(backend="mlflow+tensorboard") == LINES["tensorboard.compat"]
    assert missing_for_training(backend="mlflow") == ""
    lacking = "deepspeed"
    assert missing_for_training(backend="none") == LINES["deepspeed.ops"]
    with pytest.raises(ConfigError, match=r"^the package deepspeed is not installed"):
        train.main(["launch/runs/demo/cts.toml"])
