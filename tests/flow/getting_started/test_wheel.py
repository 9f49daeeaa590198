"""The wheel in an environment that holds what it asks for and no more: no DeepSpeed, MLflow, Accelerate or compiler."""

import csv
import io
import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
import torch
from packaging.requirements import Requirement

from ccts_dist.config import ModelConfig
from ccts_dist.model import build_model, save_model
from tests.helpers.models import model_shapes
from tests.helpers.processes.launching import ROOT

SOURCES = ("ccts_dist", "launch/runs", "ds_configs", "pyproject.toml", "README.md", "LICENSE")
NOT_THERE = ("accelerate", "deepspeed", "mlflow", "ninja", "pandas", "sqlalchemy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since building leaves files beside the sources."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=copy, check=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of an environment with the wheel, and links to what it requires, for ONNX too."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"))
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (own,) = site.glob("ccts_dist-*.dist-info")
    for name in required(PathDistribution(own), {"onnx"}):
        for top in {str(file).partition("/")[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return place / "bin"


def required(asking: Distribution, extras: set[str]) -> set[str]:
    """Names of all distributions that one asks for, and that those ask for."""
    found: set[str] = set()
    waiting = [(asking, extras)]
    while waiting:
        one, wanted = waiting.pop()
        for requirement in map(Requirement, one.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (wanted or {""})):
                if requirement.name not in found:
                    waiting.append((distribution(requirement.name), set(requirement.extras)))
                found.add(requirement.name)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, eight recordings and a table of their ratings."""
    folder = tmp_path_factory.mktemp("work")
    config = ModelConfig(embedding_dim=8, speech=model_shapes.speech_config())
    built = build_model(config)
    save_model(folder / "best", built.state_dict(), config, encoders=built.encoder_configs, scale=(1.0, 5.0), extra={})
    rows = ["key,audio,split,valence"]
    for number in range(8):
        noise = np.random.default_rng(number).normal(0.0, 0.1, 30_000)
        soundfile.write(folder / f"{number}.wav", noise, 22_050)
        rows.append(f"u{number},{number}.wav,{'Train' if number < 4 else 'Development'},{1 + number % 5}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def ccts(bare: Path, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Without this process's environment, and with no compiler on the path."""
    env = {"PATH": str(bare), "HOME": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env |= {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS")}
    return subprocess.run([bare / "ccts", *words], cwd=place, env=env, capture_output=True, text=True, check=False)


def test_shipped_files_are_those_of_the_checkout(wheel: Path):
    names = set(ZipFile(wheel).namelist())
    shipped = {f"runs/{path.relative_to('launch/runs')}" for path in Path("launch/runs").rglob("*.toml")}
    shipped |= {str(path) for path in Path("ds_configs").glob("*.json")} | {"runs/schema.json"}
    templates = {str(path) for path in Path("ccts_dist").rglob("templates/*")}
    assert len(templates) >= 4
    assert templates <= names
    assert len(shipped) > 30
    assert {f"ccts_dist/shipped/{name}" for name in shipped} <= names
    assert {"ccts_dist/py.typed", "ccts_dist/commands/train.py", "ccts_dist/serving/page_files/page.html"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ccts_dist"}


def test_recordings_are_predicted(bare: Path, place: Path):
    done = ccts(bare, place, "predict", "--model", "best", "--format", "csv", "0.wav", "1.wav")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["file"] for row in rows] == ["0.wav", "1.wav"]
    assert all(1 <= float(row["valence"]) <= 5 for row in rows)


def test_shards_are_built(bare: Path, place: Path):
    done = ccts(
        bare, place, "build", "manifest", "table.csv", "--out", "shards", "--scale", "1", "5", "--processes", "1"
    )
    assert done.returncode == 0, done.stderr
    assert "8 resampled" in done.stdout


def test_student_is_exported_to_onnx(bare: Path, place: Path):
    done = ccts(bare, place, "export", "--model", "best", "--format", "onnx", "--out", "onnx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote onnx; largest difference from torch ")


def test_training_and_the_registry_name_their_extra_in_one_line(bare: Path, place: Path):
    for words, line in {
        ("train", "--config", "demo/teacher.toml"): "package accelerate is not installed. Install the extra: pip "
        "install 'ccts-dist[train]'",
        ("predict", "--model", "models:/m@a", "0.wav"): "package mlflow is not installed. Install the extra: pip "
        "install 'ccts-dist[mlflow]'",
    }.items():
        done = ccts(bare, place, *words)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: the {line}\n")


def test_help_is_there_at_once_and_shipped_files_are_found(bare: Path, place: Path):
    assert ccts(bare, place, "--help").returncode == 0
    found = ccts(bare, place, "path", "demo/cts.toml").stdout.strip()
    assert found.endswith("site-packages/ccts_dist/shipped/runs/demo/cts.toml")
    assert Path(found).is_file()
    packages = {path.name for path in Path(found).parents[4].iterdir()}
    assert packages.isdisjoint(NOT_THERE), "else nothing above was tested"
    assert torch.__name__ in packages
