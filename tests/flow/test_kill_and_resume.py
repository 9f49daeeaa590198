"""SIGKILL to everything the launcher started, in the middle of an epoch; then --resume auto."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.launching import ROOT, environment, launch_well, launcher
from tests.small_runs import build_two_kinds, make_cache, read_history, read_validations, write_run
from tests.small_teacher import save_small_teacher

STEPS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    shard_set = build_two_kinds(folder)
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    return folder


def config_for(place: Path, name: str) -> tuple[Path, Path, str]:
    output = place / "runs" / name
    store = f"sqlite:///{place}/{name}.db"
    config = write_run(
        place / f"{name}.toml", place / "shards", output,
        data={"teacher": str(place / "cache"), "workers": 1},
        model={"dropout": 0.2},
        distill={"embedding_weight": 1.0},
        batch={"micro_utterances": 4},  # two passes on two ranks: the first round repeats the second's random state
        optim={"name": "adam", "learning_rate": 1e-3, "schedule": "onecycle", "clip_norm": 1.0},
        # Six epochs of four steps, so that step 9 lies in the middle of the third and a checkpoint after step 7.
        # Validations within epochs, at steps where there is a checkpoint and where there is none.
        train={"epochs": 8, "max_steps": STEPS, "checkpoint_steps": 7, "validate_steps": 7},
        tracking={"kind": "mlflow", "uri": store, "experiment": "kill"},
    )  # fmt: skip
    return config, output, store


def kill_at_step(config: Path, output: Path, step: int) -> None:
    """Start training with two ranks and SIGKILL its process group, ranks and all, once ``step`` is in the history."""
    process = subprocess.Popen(
        [*launcher(2), "launch/train.py", "--config", str(config), "--resume", "auto"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (output / "history.jsonl").exists() or len(read_whole_lines(output)) < step:
        assert process.poll() is None, f"training ended by itself with {process.returncode}"
        assert time.monotonic() < deadline, "training never got to the step"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not still_training(config), "a rank has outlived the launcher's process group"


def read_whole_lines(output: Path) -> list[str]:
    return [line for line in (output / "history.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]


def still_training(config: Path) -> list[str]:
    """Processes that were started for this run file, a moment after they should have gone."""
    time.sleep(1)
    found = subprocess.run(["pgrep", "-f", f"train.py.*{config.name}"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_killed_run_ends_with_the_weights_of_the_undisturbed_one_and_is_one_run(place):
    config, undisturbed, _ = config_for(place, "undisturbed")
    launch_well(2, "launch/train.py", "--config", str(config))
    config, killed, store = config_for(place, "killed")
    kill_at_step(config, killed, 9)
    kill_at_step(config, killed, 17)
    launch_well(2, "launch/train.py", "--config", str(config), "--resume", "auto")

    assert read_history(killed) == read_history(undisturbed)
    assert read_validations(killed) == read_validations(undisturbed)
    for folder in ("last", "best"):
        weights = [(output / folder / "model.safetensors").read_bytes() for output in (undisturbed, killed)]
        assert weights[0] == weights[1], f"{folder}: the weights differ"

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("kill")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1)), "each step once, replayed ones too"
    validated = [metric.step for metric in client.get_metric_history(run.info.run_id, "valid/loss")]
    # At the end of each epoch of four steps, every seven steps, and at the end of training, where an epoch is cut.
    assert sorted(validated) == [4, 7, 8, 12, 14, 16, 20, 21, 24, 28, 30]
