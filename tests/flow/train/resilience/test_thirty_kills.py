"""One run, killed thirty times at random moments and resumed each time, ends as the one that nobody disturbed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.running_training import Running, newest_checkpoint, num_steps
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run

pytestmark = pytest.mark.long

KILLS = 30
LEAST_WHILE_SAVING = 5
STEPS = 200
"""More than thirty starts come to before they are killed: 24 of them go on by up to six steps and some more."""

SAID_AT_THE_START = ("ranks ", "parameters ", "memory per rank ")
"""By rank 0, between finding its peers and the first step."""


def config_for(place: Path, name: str) -> tuple[Path, Path]:
    output = place / "runs" / name
    config = write_run(
        place / f"{name}.toml", place / "shards", output,
        data={"num_workers": 1},
        model={"dropout": 0.2},
        batch={"global_batch_size": 8, "micro_batch_size": 4},
        optim={"name": "adam", "learning_rate": 1e-3, "lr_scheduler": "onecycle", "max_grad_norm": 1.0},
        # Epochs of 20 steps: checkpoints within them, and after the validation at their ends.
        train={"epochs": 10, "max_steps": STEPS, "save_steps": 2},
        tracking={"backend": "mlflow", "tracking_uri": f"sqlite:///{place}/{name}.db",
            "experiment_name": "thirty kills"},
    )  # fmt: skip
    return config, output


def is_saving(output: Path) -> bool:
    """Whether a checkpoint is being written: one that is not complete, for a step beyond the newest complete one."""
    try:
        names = os.listdir(output / "checkpoints")
    except FileNotFoundError:
        return False
    begun = max((name for name in names if name.endswith(".partial")), default="")
    return begun > max((name for name in names if "." not in name), default="") + ".partial"


class Killer:
    """Decides when a start is killed, and does it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._kinds = ["while saving"] * 11 + ["at a step"] * 13 + ["at the start"] * 6
        chance.shuffle(self._kinds)
        self.while_saving = 0

    def kill(self, running: Running, number: int) -> str:
        """Kill the launcher and both ranks; what it was and how far it had come, for people."""
        kind, chance, output = self._kinds[number], self._chance, running.output
        if kind == "at the start":
            printed = chance.choice(SAID_AT_THE_START)
            running.wait_until(lambda: bool(running.lines(printed)))
            time.sleep(chance.uniform(0.0, 0.3))
        else:
            running.wait_until(running.is_training)
        if kind == "at a step":
            running.wait_for_step(num_steps(output) + chance.randint(1, 6))
            time.sleep(chance.uniform(0.0, 0.1))
        elif kind == "while saving":
            for _ in range(chance.randint(1, 2)):
                saved = newest_checkpoint(output)
                running.wait_until(lambda saved=saved: newest_checkpoint(output) > saved)
            while not is_saving(output):
                assert running.process.poll() is None, running.words()
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.01))
        os.killpg(running.process.pid, signal.SIGKILL)
        assert running.process.wait(30) == -signal.SIGKILL, running.words()
        running.wait_for_silence(30)
        saving = is_saving(output)
        self.while_saving += saving
        return f"{kind}: after {num_steps(output)} steps{', while a checkpoint was being saved' if saving else ''}"


def test_thirty_kills_change_nothing(tmp_path, capsys):
    seed = int(os.environ.get("CCTS_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    killer = Killer(random.Random(seed))
    reported = [f"CCTS_KILL_SEED={seed}"]
    build_two_kinds(tmp_path, num_train=160)
    config, undisturbed = config_for(tmp_path, "undisturbed")
    launch_well(2, "launch/train.py", "--config", str(config), timeout_s=600.0)

    config, killed = config_for(tmp_path, "killed")
    try:
        for number in range(KILLS):
            log = tmp_path / f"{number}.log"
            with Running(config, killed, log, "--resume", "auto") as running:
                reported.append(f"kill {number + 1}: {killer.kill(running, number)}")
        launch_well(2, "launch/train.py", "--config", str(config), "--resume", "auto", timeout_s=600.0)
    finally:
        with capsys.disabled():
            print("\n" + "\n".join(reported))
            print(f"{len(reported) - 1} kills, {killer.while_saving} of them while a checkpoint was being saved")

    assert killer.while_saving >= LEAST_WHILE_SAVING
    assert read_history(killed) == read_history(undisturbed)
    assert len(read_history(killed)) == STEPS
    for folder in ("last", "best"):
        weights = [(output / folder / "model.safetensors").read_bytes() for output in (undisturbed, killed)]
        assert weights[0] == weights[1], f"{folder}: the weights differ"

    client = MlflowClient(f"sqlite:///{tmp_path}/killed.db")
    experiment = client.get_experiment_by_name("thirty kills")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.data.metrics]
    assert run.info.status == "FINISHED"
    for key in ("train/loss", "train/grad_norm"):
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
        assert sorted(steps) == list(range(1, STEPS + 1)), f"{key}: each step once, replayed ones too"
    valid = [metric.step for metric in client.get_metric_history(run.info.run_id, "valid/loss")]
    assert sorted(valid) == list(range(20, STEPS + 1, 20))
