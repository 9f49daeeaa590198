"""What goes wrong in a training: its exit code, its words, and what it leaves behind. Two real ranks each."""

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from ccts_dist.train.checkpoints.checkpoint import read_manifest
from tests.helpers.faults.small_disk import small_disk
from tests.helpers.processes.launching import launch
from tests.helpers.processes.running_training import Running, newest_checkpoint, num_steps
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run

pytestmark = pytest.mark.long

SCRIPT = "tests/flow/train/resilience/faulty_train.py"
HOST = socket.gethostname()
TIMEOUT_S = 15.0
FOR_EVER = {"epochs": 100_000, "max_steps": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    build_two_kinds(folder, num_train=640)
    return folder / "shards"


def expect_error(running: Running, words: str) -> str:
    """The one line of error, after which no rank gave a traceback of its own."""
    (line,) = running.lines("error: ")
    assert words in line, line
    assert "Traceback" not in running.words(), running.words()
    return line


def test_rank_that_is_stopped_ends_all_within_the_time_out_and_leaves_once_it_is_continued(shards, tmp_path):
    settings = FOR_EVER | {"comm_timeout_s": TIMEOUT_S, "save_steps": 5}
    config = write_run(tmp_path / "stopped.toml", shards, tmp_path / "run", train=settings)
    with Running(config, tmp_path / "run", tmp_path / "log") as running:
        running.wait_for_step(12)
        time.sleep(2)  # a rank reports once a second where it is: else it was last seen setting up
        rank = running.rank(1)
        rank.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        survivor = running.rank(0)
        while survivor.is_running() and survivor.status() != "zombie":
            assert time.monotonic() - began < TIMEOUT_S + 30, running.words()
            time.sleep(0.1)
        line = expect_error(running, f"rank 1 on {HOST} (process {rank.pid}), last seen at ")
        # It may have been stopped between two steps as well.
        assert re.search(r"last seen at (epoch \d+/100000, step \d|saving|validating)", line), line
        assert "is stopped (SIGSTOP). All ranks end. The newest complete checkpoint is step-0000" in line
        # The launcher would kill it half a minute later.
        rank.send_signal(signal.SIGCONT)
        assert running.wait_for_exit(60) == 1
        running.wait_for_silence(10)
    read_manifest(tmp_path / "run" / "checkpoints" / newest_checkpoint(tmp_path / "run"))


def test_rank_whose_loader_never_returns_ends_all_and_is_named_with_its_place(shards, tmp_path):
    config = write_run(
        tmp_path / "stuck.toml", shards, tmp_path / "run", train=FOR_EVER | {"comm_timeout_s": TIMEOUT_S}
    )
    with Running(config, tmp_path / "run", tmp_path / "log", "--fault", "stuck:4:4", script=SCRIPT) as running:
        running.wait_for_step(2)  # a step's batch is read before the step that comes before it
        rank = running.rank(1)
        assert running.wait_for_exit(TIMEOUT_S + 60) == 1
        line = expect_error(
            running, f"rank 1 on {HOST} (process {rank.pid}), last seen at epoch 1/100000, step 4: reading"
        )
        assert "is stuck. All ranks end. There is no complete checkpoint yet." in line


def test_request_within_a_long_step_waits_for_no_other(shards, tmp_path):
    config = write_run(tmp_path / "slow.toml", shards, tmp_path / "run", train=FOR_EVER)
    with Running(config, tmp_path / "run", tmp_path / "log", "--fault", "slow:4:4", script=SCRIPT) as running:
        assert running.wait_for_exit(120) == 75, running.words()
        (line,) = running.lines("stopped on request")
    assert "step 4: complete checkpoint step-00000004" in line
    assert num_steps(tmp_path / "run") == 4


def test_rank_that_is_killed_is_named_by_the_others_and_checkpoints_came_by_the_clock(shards, tmp_path):
    settings = FOR_EVER | {"save_minutes": 0.005}
    config = write_run(tmp_path / "killed.toml", shards, tmp_path / "run", train=settings)
    with Running(config, tmp_path / "run", tmp_path / "log") as running:
        running.wait_until(lambda: bool(newest_checkpoint(tmp_path / "run")))
        first = newest_checkpoint(tmp_path / "run")
        rank = running.rank(1)
        rank.kill()
        running.wait_for_exit(60)
        line = expect_error(running, f"rank 1 on {HOST} (process {rank.pid}), last seen at ")
        assert "has ended. All ranks end. The newest complete checkpoint is step-" in line
    assert int(first.rpartition("-")[2]) < 40, "within the first epoch, where no number of steps asks for one"


def test_loss_that_stays_not_finite_stops_all_with_the_keys_of_the_global_batch(shards, tmp_path):
    config = write_run(
        tmp_path / "diverged.toml", shards, tmp_path / "run",
        optim={"learning_rate": 1e30}, train={"nonfinite_patience": 3},
    )  # fmt: skip
    with Running(config, tmp_path / "run", tmp_path / "log") as running:
        assert running.wait_for_exit() == 1
        line = expect_error(running, "3 steps in a row without a finite loss and gradient")
    keys = line.partition("The last batch: ")[2].split(", ")
    assert len(set(keys)) == 16, "the whole global batch, not one rank's part"
    assert all(key.startswith("Train_") for key in keys)
    assert [step["train/skipped_steps"] for step in read_history(tmp_path / "run")][-2:] == [1.0, 2.0]
    assert newest_checkpoint(tmp_path / "run") == ""


@pytest.mark.parametrize(
    ("stage", "precision", "max_grad_norm"),
    [(0, "fp32", 1.0), (1, "fp32", 0.0), (2, "fp32", 1.0), (3, "fp32", 0.0), (2, "bf16", 1.0)],
)
def test_gradient_of_one_rank_that_is_not_finite_moves_neither_weights_nor_optimizer_on_any(
    shards, tmp_path, stage, precision, max_grad_norm
):
    ds_config = {
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }
    (tmp_path / "zero.json").write_text(json.dumps(ds_config))
    config = write_run(
        tmp_path / "run.toml", shards, tmp_path / "run",
        optim={"name": "adam", "max_grad_norm": max_grad_norm}, batch={"micro_batch_size": 4},
        train={"max_steps": 6, "precision": precision, "deepspeed": str(tmp_path / "zero.json")},
    )  # fmt: skip
    done = launch(2, SCRIPT, "--config", str(config), "--fault", "nan-gradient:3:4", timeout_s=600.0)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    reported = sorted(line for line in done.stdout.splitlines() if " skipped " in line and line.startswith("rank "))
    what = dict.fromkeys(range(1, 7), "skipped False state changed")
    what |= dict.fromkeys((3, 4), "skipped True state unchanged")
    assert reported == [f"rank {rank} step {step} {words}" for rank in (0, 1) for step, words in what.items()]
    assert [step["train/skipped_steps"] for step in read_history(tmp_path / "run")] == [0, 0, 1, 2, 2, 2]
    assert ", 2 skipped" in done.stderr


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "12m") as folder:
        yield folder


def test_full_disk_leaves_the_checkpoint_before_whole_and_the_run_goes_on_once_there_is_room(shards, disk, tmp_path):
    output = disk / "run"
    config = write_run(
        tmp_path / "full.toml", shards, output,
        optim={"name": "adam"}, train=FOR_EVER | {"save_steps": 10, "save_total_limit": 1},
    )  # fmt: skip
    filler = disk / "filler"
    with Running(config, output, tmp_path / "1.log") as running:
        running.wait_until(lambda: bool(newest_checkpoint(output)))
        fill(filler)
        assert running.wait_for_exit() == 1
        line = expect_error(running, str(output))
        assert "No space left on device" in line
    checkpoint = output / "checkpoints" / newest_checkpoint(output)
    reached = read_manifest(checkpoint).step
    filler.unlink()
    with Running(config, output, tmp_path / "2.log", "--resume", "auto") as running:
        running.wait_until(lambda: newest_checkpoint(output) > checkpoint.name)
        (output / "STOP").touch()
        assert running.wait_for_exit() == 75
        assert f"resuming from {checkpoint.name}: epoch {reached // 40 + 1}, step {reached}\n" in running.words()


def fill(path: Path) -> None:
    """Write until the disk has no room."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65_536)
        except OSError:
            pass


def test_run_folder_that_vanishes_or_becomes_read_only_ends_all_with_the_same_words(shards, tmp_path):
    output = tmp_path / "run"
    config = write_run(tmp_path / "gone.toml", shards, output, train=FOR_EVER | {"save_steps": 20})
    with Running(config, output, tmp_path / "1.log") as running:
        running.wait_until(lambda: bool(newest_checkpoint(output)))
        output.rename(tmp_path / "moved away")
        assert running.wait_for_exit() == 1
        expect_error(running, f"{output}: cannot be written or read back: No such file or directory")
    assert not output.exists(), "it was made anew, without what lay in it"

    with Running(config, output, tmp_path / "2.log") as running:
        running.wait_until(lambda: bool(newest_checkpoint(output)))
        made = subprocess.run(
            ["chattr", "+i", str(output / "checkpoints")], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            pytest.skip(f"nothing can be made read-only here: {made.stderr.strip()}")
        try:
            assert running.wait_for_exit() == 1
            expect_error(running, str(output))
            step = num_steps(output)
        finally:
            subprocess.run(["chattr", "-i", str(output / "checkpoints")], check=True)
    assert read_manifest(output / "checkpoints" / newest_checkpoint(output)).step < step
