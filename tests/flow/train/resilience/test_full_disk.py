"""Commands that write to a disk which is full: one line, exit code 1, and nothing half written that looks whole."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.faults.small_disk import small_disk
from tests.helpers.models.small_student import save_student
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import ROOT, run_forked
from tests.helpers.processes.small_runs import build_two_kinds, make_cache
from tests.ready_store import MIGRATE

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a teacher cache and a student."""
    folder = tmp_path_factory.mktemp("full-disk")
    shard_set = build_two_kinds(folder)
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    save_student(folder / "model")
    return folder


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own with room for a few kilobytes."""
    with small_disk(tmp_path / "disk", "32k") as disk:
        yield disk


COMMANDS = {
    "merge": ("shards/merge.py", "--shards", "{m}/shards", "--teacher-cache", "{m}/cache", "--out", "{d}/merged"),
    "export": ("launch/export.py", "--model", "{m}/model", "--format", "transformers", "--out", "{d}/export"),
    "evaluate": (
        *("launch/evaluate.py", "--model", "{m}/model", "--shards", "{m}/shards"),
        *("--splits", "Test1", "--out", "{d}/evaluation"),
    ),
    "embeddings": ("launch/predict.py", "--model", "{m}/model", "--embeddings", "{d}/e.npy", "{m}"),
    "registry": (
        "launch/register.py",
        "--checkpoint",
        "{m}/model",
        "--name",
        "x",
        "--tracking-uri",
        "sqlite:///{d}/mlflow.db",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_on_a_full_disk_ends_with_one_line_and_exit_code_1(name: str, material: Path, full: Path):
    script, *words = COMMANDS[name]
    if name in ("embeddings", "export", "evaluate"):  # a few kilobytes are enough for these
        (full / "filler").write_bytes(bytes(28 * 1024))
    args = [word.format(m=material, d=full) for word in words]
    done = run_forked([sys.executable, str(ROOT / script), *args], env={"MLFLOW_TRACKING_URI": "", **MIGRATE})
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert str(full) in errors[0]
    left = {path.name for path in full.iterdir() if not path.name.startswith(".")}
    assert not left & {"export", "mlflow.db", "e.npy"}
    assert not (full / "merged" / "manifest.json").exists()
