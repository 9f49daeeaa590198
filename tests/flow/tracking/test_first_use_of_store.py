"""The default store, used for the first time by ten processes at once in an empty folder."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.models.small_student import save_student
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, inner_launcher, run_forked
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run
from tests.ready_store import MIGRATE

pytestmark = pytest.mark.long

REPETITIONS = int(os.environ.get("CCTS_TEST_FIRST_USES", "1"))
"""Empty folders; twenty before a release."""

NUM_TRAININGS, NUM_REGISTRATIONS, NUM_LOOKUPS = 3, 4, 3
STEPS = 4


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, and the folder of a model."""
    folder = tmp_path_factory.mktemp("first-use")
    build_two_kinds(folder)
    save_student(folder / "model")
    return folder


@pytest.mark.parametrize("number", range(REPETITIONS))
def test_ten_trainings_registrations_and_lookups_at_once_in_an_empty_folder_all_succeed(
    number: int, material: Path, tmp_path: Path
):
    place = tmp_path / "empty"
    place.mkdir()
    trainings = []
    for one in range(NUM_TRAININGS):
        config = write_run(
            tmp_path / f"{one}.toml", material / "shards", tmp_path / f"run{one}",
            train={"max_steps": STEPS, "deepspeed": str(ROOT / "ds_configs/zero2.json")},
            tracking={"backend": "mlflow"},
        )  # fmt: skip
        trainings.append([*inner_launcher(1), str(ROOT / "launch/train.py"), "--config", str(config)])
    model = str(material / "model")
    registrations = [_python("register", "--checkpoint", model, "--name", "emotion")] * NUM_REGISTRATIONS
    wave = str(next(material.glob("Test1-*.wav")))
    lookup = _python("predict", "--model", "models:/emotion@candidate", wave)
    everything = [*trainings, *registrations, *[lookup] * NUM_LOOKUPS]
    env = environment({"MLFLOW_TRACKING_URI": "", "XDG_CACHE_HOME": str(tmp_path / "cache"), **MIGRATE})
    started = [Forked(command, cwd=place, env=env, stderr=subprocess.STDOUT) for command in everything]
    words = [process.communicate(600.0)[0] for process in started]
    codes = [process.wait() for process in started]
    num_writers = NUM_TRAININGS + NUM_REGISTRATIONS
    assert codes[:num_writers] == [0] * num_writers, "\n".join(words)
    for code, printed in zip(codes[num_writers:], words[num_writers:], strict=True):
        # Whoever looks before the first is registered is reported so.
        assert code == 0 or "error: models:/emotion@candidate: not in the registry" in printed, printed
    assert not [printed for printed in words if "Traceback" in printed]

    with sqlite3.connect(place / "mlflow.db") as store:
        steps = store.execute("select count(*) from metrics where key = 'train/loss'").fetchone()
        versions = store.execute("select version from model_versions where name = 'emotion'").fetchall()
    assert steps == (NUM_TRAININGS * STEPS,)
    assert sorted(version for (version,) in versions) == list(range(1, NUM_REGISTRATIONS + 1))
    assert all(len(read_history(tmp_path / f"run{one}")) == STEPS for one in range(NUM_TRAININGS))
    assert {path.name for path in place.iterdir()} == {"mlflow.db", "mlruns"}
    done = run_forked(lookup, cwd=place, env={"MLFLOW_TRACKING_URI": "", "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr


def _python(script: str, *args: str) -> Sequence[str]:
    return [sys.executable, str(ROOT / "launch" / f"{script}.py"), *args]
