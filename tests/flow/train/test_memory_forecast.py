"""What ``--check --gpu-memory`` states and refuses, and what a training reports of the memory it took."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import run_main
from ccts_dist.train.experiment import check_experiment
from ccts_dist.train.memory.forecast import Forecast
from launch import train as command
from tests.helpers.processes.launching import ROOT, environment
from tests.helpers.processes.small_runs import build_two_kinds, write_run

MOST_SAMPLES = 6_600
"""No utterance of ``build_two_kinds`` is longer."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    build_two_kinds(folder, num_train=32, num_valid=8)
    return folder


@pytest.fixture
def config(place: Path) -> Path:
    return write_run(place / "run.toml", place / "shards", place / "run")


def check(config: Path, *args: str) -> int:
    return run_main(command.main, ["--config", str(config), "--check", *args])


def test_check_shows_parts_and_peak_without_a_gpu(config, capfd):
    assert check(config, "--ranks", "2") == 0
    out, _ = capfd.readouterr()
    assert re.search(r"memory per rank +on the host +GB", out)
    for what in ("weights, fp32", "master weights, fp32", "gradient buckets", "activations", "process", "at least"):
        assert re.search(rf"^  {what} +\d+\.\d\d", out, re.MULTILINE) or what.startswith("weights"), what
    assert "freed memory that the C library keeps is not in it, 0.1 to 1.1 GB where it was measured" in out, (
        "without a GPU the figure is a floor"
    )
    assert "check passed\n" in out


def test_check_states_that_a_run_fits_and_how_large_micro_batches_could_be(config, capfd):
    assert check(config, "--ranks", "2", "--gpu-memory", "10") == 0
    out, _ = capfd.readouterr()
    assert "on the GPU" in out
    assert "check passed: fits 10 GB; the largest batch.micro_batch_size that does is 8\n" in out


def test_check_names_what_would_fit_with_fewer_micro_batches_and_without_recomputing(config, capfd):
    changes = ["--set", "model.gradient_checkpointing=true", "--set", "batch.micro_batch_size=2"]
    assert check(config, "--ranks", "2", "--gpu-memory", "10", *changes) == 0
    out, _ = capfd.readouterr()
    words = re.search(r"; (batch.micro_batch_size = 8 and model.gradient_checkpointing = false) would fit too", out)
    assert words is not None, out
    assert out.rstrip().endswith("1 micro-batch a step in place of 4, no recomputation of layers")


def test_check_proposes_no_other_cut_where_each_micro_batch_has_its_own_loss(config, capfd):
    changes = ["--set", "model.gradient_checkpointing=true", "--set", "batch.micro_batch_size=2"]
    assert check(config, "--ranks", "2", "--gpu-memory", "10", *changes, "--set", "loss.scope=micro-batch") == 0
    out, _ = capfd.readouterr()
    assert "; model.gradient_checkpointing = false would fit too" in out


def test_check_refuses_a_gpu_that_is_too_small_in_one_line(config, capfd):
    assert check(config, "--ranks", "2", "--gpu-memory", "0.5") == 2
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: --gpu-memory 0.5: does not fit: a rank needs 2.")
    assert "no batch.micro_batch_size fits" in line
    helps = line.split("What helps most: ")[1].split("; ")
    needs = [float(re.search(r"\(([\d.]+) GB\)", words)[1]) for words in helps]
    assert len(helps) == 3
    assert needs == sorted(needs)
    assert "check passed" not in out


def test_activations_that_cannot_be_foreseen_are_not_in_the_table(config, monkeypatch):
    monkeypatch.setattr("ccts_dist.train.memory.forecast.trace_peak", lambda *_, **__: None)
    monkeypatch.setattr("ccts_dist.train.memory.forecast.trace_pass", lambda *_, **__: None)
    with check_experiment(read_run(config), 1) as experiment:
        forecast = Forecast(experiment, on_gpu=True)
        forecast.decide_rounds(10**10)
        assert forecast.lines()[-1] == "  activations of this encoder cannot be foreseen, and are not in it"


def test_a_run_that_has_all_that_helps_is_told_to_take_more_ranks(config, capfd):
    changes = ["train.precision=bf16", "model.gradient_checkpointing=true", "batch.micro_batch_size=1"]
    changes.append("train.deepspeed=ds_configs/zero3_offload.json")
    options = [word for change in changes for word in ("--set", change)]
    assert check(config, "--ranks", "2", "--gpu-memory", "0.5", *options) == 2
    assert "What helps most: more ranks, or larger GPUs." in capfd.readouterr().err


def test_nothing_faster_is_named_where_a_run_just_fits(config):
    changes = ["model.gradient_checkpointing=true", "batch.micro_batch_size=1"]
    with check_experiment(read_run(config, changes), 1) as experiment:
        forecast = Forecast(experiment, on_gpu=True)
        gb = forecast.peak_bytes / 1e9
        assert forecast.check_fits(gb).endswith("; the largest batch.micro_batch_size that does is 1")


@pytest.mark.parametrize("gb", ["0", "-1", "nan"])
def test_memory_that_is_none_is_refused(config, capfd, gb):
    assert check(config, f"--gpu-memory={gb}") == 2
    assert "must be a number above 0" in capfd.readouterr().err


def test_largest_part_is_that_of_the_plan_and_of_the_ranks(config):
    run = read_run(config, ["batch.micro_batch_size=3"])
    with check_experiment(run, 2) as experiment:
        part = experiment.loader.largest_part(3)
        steps = [batch for step in experiment.loader.epoch(0) for batch in step.micro_batches]
        assert len(part.rows) <= 3
        assert part.padded_samples >= max(batch.audio.numel() for batch in steps)
        assert part.padded_samples <= 3 * MOST_SAMPLES
        # As if micro-batches were of one: then the longest utterance alone is the largest part.
        assert len(experiment.loader.largest_part(1).rows) == 1


def test_the_largest_micro_batch_that_fits_is_found_at_the_limit(config):
    with check_experiment(read_run(config, ["batch.micro_batch_size=1"]), 1) as experiment:
        assert experiment.ranks == Ranks()
        forecast = Forecast(experiment, on_gpu=True)
        needed = {}
        for micro in (1, 2, 4, 8, 16):
            with check_experiment(read_run(config, [f"batch.micro_batch_size={micro}"]), 1) as other:
                needed[micro] = Forecast(other, on_gpu=True).peak_bytes
        assert needed[16] > needed[1]
        words = forecast.check_fits(needed[4] / 1e9)
        assert int(words.split("; ")[1].rsplit(" ", 1)[1]) in range(4, 8)


@pytest.mark.long
def test_training_reports_what_it_took_beside_what_was_foreseen(place):
    store = f"sqlite:///{place / 'runs.db'}"
    output = place / "trained"
    config = write_run(
        place / "trained.toml", place / "shards", output,
        data={"test_splits": []}, train={"max_steps": 2},
        tracking={"backend": "mlflow", "tracking_uri": store, "experiment_name": "memory"},
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--config", str(config)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    words = re.search(r"most memory of a rank: ([\d.]+) GB; estimated: ([\d.]+) GB or more", done.stdout + done.stderr)
    assert words is not None
    summary = json.loads((output / "summary.json").read_text())
    assert summary["peak_memory_gb"] == pytest.approx(float(words[1]), abs=0.01)
    ratio = summary["peak_memory_gb"] / float(words[2])
    assert 1.0 <= ratio < 2.5, f"the estimate is named as a floor, and the run took {ratio:.2f} times as much"
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("memory")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert 0.4 < run.data.metrics["system/peak_memory_gb"] <= summary["peak_memory_gb"]
    assert run.data.metrics["system/estimated_memory_gb"] == pytest.approx(float(words[2]), abs=0.01)
