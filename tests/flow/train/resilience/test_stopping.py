"""Requests to stop, one after the other in one run: each ends it with a complete checkpoint and 75; then it goes on."""

import re
import signal
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ccts_dist.train.checkpoints.checkpoint import read_manifest
from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.running_training import Running, newest_checkpoint, num_steps
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run

pytestmark = pytest.mark.long

STEPS = 200
"""Five epochs of 40 steps."""

STOPPED = 75


def config_for(place: Path, name: str) -> tuple[Path, Path]:
    output = place / "runs" / name
    config = write_run(
        place / f"{name}.toml", place / "shards", output,
        data={"num_workers": 1},
        model={"dropout": 0.2},
        optim={"name": "adam", "learning_rate": 1e-3, "lr_scheduler": "onecycle", "max_grad_norm": 1.0},
        train={"epochs": 5, "max_steps": STEPS, "stop_grace_s": 60.0},
        tracking={"backend": "mlflow", "tracking_uri": f"sqlite:///{place}/{name}.db", "experiment_name": "stop"},
    )  # fmt: skip
    return config, output


def run_status(place: Path) -> str:
    client = MlflowClient(f"sqlite:///{place}/stopped.db")
    experiment = client.get_experiment_by_name("stop")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, len(steps) + 1)), "each step once"
    return run.info.status


def expect_stop(running: Running, request: str) -> int:
    """The step at which it stopped, as it reports so itself, once the checkpoint of that step is sound."""
    (line,) = running.lines("stopped on request")
    step = num_steps(running.output)
    name = f"step-{step:08d}"
    words = rf"stopped on request \({request}\) at step {step}: complete checkpoint {name}\. Run the same command "
    assert re.fullmatch(words + r"with --resume auto to go on\.", line), line
    assert newest_checkpoint(running.output) == name
    assert read_manifest(running.output / "checkpoints" / name).step == step
    assert "Traceback" not in running.words()
    return step


def test_every_request_to_stop_leaves_a_checkpoint_from_which_the_run_ends_as_if_undisturbed(tmp_path):
    build_two_kinds(tmp_path, num_train=640)
    config, undisturbed = config_for(tmp_path, "undisturbed")
    launch_well(2, "launch/train.py", "--config", str(config), timeout_s=600.0)
    config, output = config_for(tmp_path, "stopped")

    with Running(config, output, tmp_path / "1.log", whole_launcher=True) as running:
        running.wait_for_step(5)
        running.rank(1).send_signal(signal.SIGTERM)
        assert running.wait_for_exit() == STOPPED, running.words()
        reached = expect_stop(running, "SIGTERM on rank 1")
        assert 5 <= reached < STEPS
    assert run_status(tmp_path) == "KILLED"

    with Running(config, output, tmp_path / "2.log", "--resume", "auto") as running:
        running.wait_for_step(reached + 5)
        (output / "STOP").touch()
        assert running.wait_for_exit() == STOPPED, running.words()
        reached = expect_stop(running, "file STOP; STOP is removed")
    assert not (output / "STOP").exists()

    # Before the first step: while rank 0 sets up.
    with Running(config, output, tmp_path / "3.log", "--resume", "auto") as running:
        running.wait_until(lambda: has_handlers(running, 0))
        running.rank(0).send_signal(signal.SIGUSR1)
        assert running.wait_for_exit() == STOPPED, running.words()
        assert expect_stop(running, "SIGUSR1 on rank 0") == reached

    # The launcher dies of the signal and hands nothing on; its own exit code is the signal's.
    with Running(config, output, tmp_path / "4.log", "--resume", "auto", whole_launcher=True) as running:
        running.wait_for_step(reached + 5)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait_for_exit(10) == -signal.SIGTERM
        running.wait_for_silence(60)
        reached = expect_stop(running, "the launcher of rank [01] has gone")

    with Running(config, output, tmp_path / "5.log", "--resume", "auto", whole_launcher=True) as running:
        running.wait_for_step(reached + 5)
        ranks = [running.rank(0), running.rank(1)]
        running.inner_launcher().kill()
        deadline = time.monotonic() + 60
        while any(rank.is_running() for rank in ranks):
            assert time.monotonic() < deadline, running.words()
            time.sleep(0.1)
        reached = expect_stop(running, "the launcher of rank [01] has gone")
        assert reached < STEPS, "the machine was too fast for this test"
    assert run_status(tmp_path) == "KILLED"

    with Running(config, output, tmp_path / "6.log", "--resume", "auto") as running:
        assert running.wait_for_exit() == 0, running.words()
    assert run_status(tmp_path) == "FINISHED"
    assert read_history(output) == read_history(undisturbed)
    for folder in ("last", "best"):
        weights = [(run / folder / "model.safetensors").read_bytes() for run in (undisturbed, output)]
        assert weights[0] == weights[1], f"{folder}: the weights differ"


def has_handlers(running: Running, number: int) -> bool:
    """Whether a rank of this start listens to signals yet: it has left a sign of life with its own process number."""
    heartbeat = running.output / ".ranks" / f"{number}.json"
    try:
        pid = f'"pid": {running.rank(number).pid},'
    except ValueError:
        return False  # not started yet
    return heartbeat.exists() and pid in heartbeat.read_text()
