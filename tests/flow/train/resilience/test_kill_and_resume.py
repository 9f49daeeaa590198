"""SIGKILL to everything the launcher started, in the middle of an epoch; then --resume auto."""

import os
import signal
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.running_training import Running
from tests.helpers.processes.small_runs import build_two_kinds, make_cache, read_history, read_validations, write_run

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
        data={"teacher_cache": str(place / "cache"), "num_workers": 1},
        model={"dropout": 0.2},
        distill={"embedding_weight": 1.0},
        # Two micro-batches on two ranks: the first round repeats the second's random state.
        batch={"micro_batch_size": 4},
        optim={"name": "adam", "learning_rate": 1e-3, "lr_scheduler": "onecycle", "max_grad_norm": 1.0},
        # Six epochs of four steps, so that step 9 lies in the middle of the third and a checkpoint after step 7.
        # Validations within epochs, at steps where there is a checkpoint and where there is none.
        train={"epochs": 8, "max_steps": STEPS, "save_steps": 7, "eval_steps": 7},
        tracking={"backend": "mlflow", "tracking_uri": store, "experiment_name": "kill"},
    )  # fmt: skip
    return config, output, store


def kill_at_step(config: Path, output: Path, step: int) -> None:
    """Start training with two ranks and SIGKILL its process group, ranks and all, once ``step`` is in the history."""
    log = output.with_name(f"{output.name}-{step}.log")
    with Running(config, output, log, "--resume", "auto", whole_launcher=True) as running:
        running.wait_for_step(step)
        os.killpg(running.process.pid, signal.SIGKILL)
        assert running.process.wait(30) == -signal.SIGKILL
        running.wait_for_silence(30)  # no rank outlives the launcher's process group


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
