"""The cost model of a run: its work comes from the durations of its shards, as the loader cuts them."""

import re
from pathlib import Path

import pytest

from ccts_dist.config import read_run
from ccts_dist.errors import run_main
from ccts_dist.train.experiment import Experiment, check_experiment
from ccts_dist.train.speed.cost import read_assumptions
from ccts_dist.train.speed.flops import ModelFlops, flops_of
from ccts_dist.train.speed.scaling import CostModel, _steps_of, scaling_lines
from ccts_dist.train.zero.partitioning import read_partitioning, sizes_of
from launch import train as command
from tests.helpers.processes.small_runs import build_two_kinds, write_run

SLOW = ("peak_tflops=0.001", "launch_us=0", "latency_us=0", "step_ms=0")
"""Computing takes all of the time."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaling")
    build_two_kinds(folder, num_train=64, num_valid=4)
    return write_run(folder / "run.toml", folder / "shards", folder / "run", batch={"global_batch_size": 8})


@pytest.fixture(scope="module")
def experiment(config: Path):
    with check_experiment(read_run(config), 4) as experiment:
        yield experiment


@pytest.fixture(scope="module")
def flops(experiment: Experiment) -> ModelFlops:
    found = flops_of(experiment)
    assert found is not None
    return found


def lines_of(experiment: Experiment, flops: ModelFlops, *pairs: str) -> list[str]:
    """As ``scaling_lines`` gives them, without counting once more."""
    assumed = read_assumptions(pairs).completed("fp32")
    model = CostModel(
        experiment.run,
        sizes_of(experiment.model),
        flops,
        assumed,
        read_partitioning(experiment.ds_config),
        _steps_of(experiment),
    )
    return model.lines(4, experiment.loader.num_utterances)


def table(lines: list[str]) -> dict[tuple[int, int], list[float]]:
    """Figures of each row, by GPUs and batch."""
    rows = [re.findall(r"[\d.]+", line) for line in lines if re.fullmatch(r"[\s\d.%]+", line)]
    return {(int(row[0]), int(row[1])): [float(cell) for cell in row[2:]] for row in rows}


def test_step_is_that_of_the_rank_with_most_to_compute(experiment: Experiment, flops: ModelFlops):
    assumed = read_assumptions([*SLOW, "compute_efficiency=0.5"]).completed("fp32")
    row = CostModel(
        experiment.run,
        sizes_of(experiment.model),
        flops,
        assumed,
        read_partitioning(experiment.ds_config),
        _steps_of(experiment),
    ).row(4, 8)
    loader = experiment.loader
    slowest = [
        max(len(part.rows) * flops.training.of_row(part.rows[0].num_samples) for part in loader.parts(0, step)[0])
        for step in range(loader.steps_per_epoch)
    ]
    assert (row.num_ranks, row.global_batch_size, row.num_micro_batches, row.steps_per_epoch) == (4, 8, 1, 8)
    assert row.cost.compute_s == pytest.approx(sum(slowest) / len(slowest) / 0.5e9)
    assert row.cost.waits_s == 0


def test_second_round_of_forward_passes_is_computed_as_well(config: Path, flops: ModelFlops):
    with check_experiment(read_run(config, ["batch.micro_batch_size=1", "batch.forward_rounds=two"]), 4) as experiment:
        assumed = read_assumptions(SLOW).completed("fp32")
        row = CostModel(
            experiment.run,
            sizes_of(experiment.model),
            flops,
            assumed,
            read_partitioning(experiment.ds_config),
            _steps_of(experiment),
        ).row(4, 8)
        assert row.num_micro_batches == 2
        slowest = [
            max(
                sum(
                    flops.training.of_row(part.rows[0].num_samples) + flops.forward.of_row(part.rows[0].num_samples)
                    for part in parts
                )
                for parts in zip(*experiment.loader.parts(0, step), strict=True)
            )
            for step in range(8)
        ]
        assert row.cost.compute_s == pytest.approx(sum(slowest) / 8 / (1e9 * 0.4))


def test_table_has_one_gpu_a_host_and_all_of_them(experiment: Experiment):
    rows = table(scaling_lines(experiment, [*SLOW, "gpus_per_host=2"], 4))
    assert list(rows)[:3] == [(1, 8), (2, 8), (4, 8)]
    num_micro_batches, compute, reduction, waits, step, epoch, utterances, efficiency = rows[1, 8]
    assert (num_micro_batches, reduction, waits, efficiency) == (1, 0, 0, 100)
    assert step == compute
    assert epoch == pytest.approx(8 * step / 1e3, abs=0.1)
    assert utterances == pytest.approx(8 / (step / 1e3), abs=1)


def test_larger_batches_are_suggested_where_gpus_wait_for_the_network(experiment: Experiment, flops: ModelFlops):
    # Computing a batch takes milliseconds, and so does the reduction: 48 kB and more over one megabyte per second.
    slow_network = ("peak_tflops=0.01", "launch_us=0", "step_ms=1", "host_gbit_s=0.01", "gpus_per_host=1")
    lines = lines_of(experiment, flops, *slow_network, "busy=0.9")
    rows = table(lines)
    small, large = rows[4, 8], rows[4, 16]
    assert small[-1] < large[-1] < rows[4, 64][-1]
    assert small[2] == pytest.approx(large[2], abs=0.1)
    words = "\n".join(lines)
    # Eight times the batch: 1e-2 becomes 8e-2 by the linear rule, and 2.83e-2 by the square root.
    assert "batch.global_batch_size = 64, optim.learning_rate between 0.0283 (square root" in words
    assert "and 0.08 (linear, for SGD) instead of 0.01" in words
    assert "an epoch then has 1 steps instead of 8" in words
    assert "suggestion, to be tried" in words
    none = "\n".join(lines_of(experiment, flops, *slow_network, "busy=1"))
    assert "an efficiency of 100%, which none of these reaches:" in none


def test_busy_gpus_need_no_larger_batch(experiment: Experiment, flops: ModelFlops):
    lines = lines_of(experiment, flops, *SLOW, "busy=0.3")
    assert lines[-1] == "  4 GPUs are busy: an efficiency of 30% is reached"


def test_check_prints_the_model_with_its_assumptions(config: Path, capfd):
    command_line = ["--config", str(config), "--check", "--ranks", "4", "--assume", "device=a100"]
    assert run_main(command.main, command_line) == 0
    out, _ = capfd.readouterr()
    assert "cost model of fp32 on a100, not measured but assumed" in out
    assert "device=a100, peak_tflops=19.5, compute_efficiency=0.4" in out
    assert out.rstrip().endswith("check passed")
    assert run_main(command.main, [*command_line[:-1], "device=abacus"]) == 2
    _, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: device 'abacus': no figures are known of it. Name one of ")


def test_check_without_ranks_states_nothing_of_speed(config: Path, capfd):
    assert run_main(command.main, ["--config", str(config), "--check"]) == 0
    assert "cost model" not in capfd.readouterr().out
