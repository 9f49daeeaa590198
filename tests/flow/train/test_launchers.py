"""Every launcher starts the same training: the shape of the demo's student, three steps."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import BIN, ROOT, environment, free_port
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, write_run

pytestmark = pytest.mark.long

TRAIN = "launch/train.py"
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")


def command(launcher: str) -> list[str]:
    """A launcher's words, up to the script."""
    port = str(free_port())
    return {
        "alone": [sys.executable],
        "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", port],
        "accelerate": [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2", "--main_process_port", port],
        "mpirun": [*MPIRUN, "-x", f"MASTER_PORT={port}", sys.executable],
    }[launcher]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and a teacher's cache of them."""
    folder = tmp_path_factory.mktemp("launchers")
    shard_set = build_two_kinds(folder)
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    return folder


def losses(place: Path, launcher: str) -> list[float]:
    output = place / launcher
    config = write_run(
        place / f"{launcher}.toml", place / "shards", output,
        data={"teacher_cache": str(place / "cache")},
        batch={"micro_batch_size": 8},
        distill={"gate": "any-dimension"},
        train={"epochs": 1},
    )  # fmt: skip
    steps = "train.max_steps=3"
    by_option, by_place = ["--config", str(config), "--set", steps], [str(config), steps]
    done = subprocess.run(
        [*command(launcher), TRAIN, *(by_option if launcher == "alone" else by_place)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return [step["train/loss"] for step in read_history(output)]


@pytest.fixture(scope="module")
def alone(place: Path) -> list[float]:
    """Losses of a rank without a launcher."""
    return losses(place, "alone")


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "accelerate", "mpirun"])
def test_every_launcher_trains_to_the_losses_of_one_rank(place: Path, alone: list[float], launcher: str):
    if shutil.which(command(launcher)[0]) is None:
        pytest.skip(f"there is no {launcher} here")
    assert len(alone) == 3
    assert losses(place, launcher) == pytest.approx(alone, abs=1e-5)


def test_two_launchers_at_one_port_at_the_same_moment_train_one_job_and_report_the_other_of_the_port(place: Path):
    port, jobs = str(free_port()), []
    for name in ("one", "other"):
        config = write_run(
            place / f"{name}.toml", place / "shards", place / name,
            batch={"micro_batch_size": 8}, train={"epochs": 1, "max_steps": 3},
        )  # fmt: skip
        words = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port, TRAIN, "--config", str(config)]
        jobs.append(
            subprocess.Popen(
                words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    reported = [job.communicate(timeout=600)[0] for job in jobs]
    codes = [job.returncode for job in jobs]
    assert sorted(codes) == [0, 2], reported
    (error,) = [line for line in reported[codes.index(2)].splitlines() if line.startswith("error: ")]
    assert f"port {port} at 127.0.0.1 is another job's" in error
    assert len(read_history(place / ("one", "other")[codes.index(0)])) == 3
