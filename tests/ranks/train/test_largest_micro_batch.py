"""The largest micro-batch is tried before the first step, and changes nothing."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from ccts_dist.train import run as training
from ccts_dist.train.zero.engine import Engine
from tests.helpers.processes.small_runs import LONG, SHORT, build_two_kinds, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

tried: list[tuple[int, int]] = []
"""Rows and samples of the micro-batches that this process's engine has tried."""

try_out = Engine.try_out


def try_and_note(engine: Engine, batch) -> None:
    tried.append((len(batch.keys), batch.audio.shape[1]))
    try_out(engine, batch)


def train_with_and_without(without: Path, with_trial: Path) -> list[tuple[int, int]]:
    Engine.try_out = try_and_note
    run_trainings([Job(config=without)])
    assert not tried, "a CPU's run tries nothing"
    training.tries_largest = lambda _: True
    run_trainings([Job(config=with_trial)])
    return tried


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("largest")
    build_two_kinds(folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("zero2", "fp32"),
        ("zero3", "fp32"),
        *(pytest.param(stage, "fp32", marks=pytest.mark.long) for stage in ("zero0", "zero1", "zero3_offload")),
        pytest.param("zero2", "bf16", marks=pytest.mark.long),
    ],
)
def test_trial_changes_neither_losses_nor_weights(place: Path, stage: str, precision: str):
    configs = [
        write_run(
            place / f"{stage}-{precision}-{name}.toml", place / "shards", place / f"{stage}-{precision}-{name}",
            batch={"micro_batch_size": 4},
            optim={"name": "adam", "learning_rate": 1e-3, "max_grad_norm": 1.0},
            train={"epochs": 1, "max_steps": 3, "deepspeed": f"ds_configs/{stage}.json", "precision": precision},
        )
        for name in ("without", "with")
    ]  # fmt: skip
    for shapes in run_on_ranks(train_with_and_without, 2, *configs):
        ((rows, samples),) = shapes
        assert rows == 4
        assert LONG <= samples < LONG + SHORT
    without, with_trial = (config.with_suffix("") for config in configs)
    assert read_history(with_trial) == read_history(without)
    weights, same = (load_file(run / "last" / "model.safetensors") for run in (without, with_trial))
    assert weights.keys() == same.keys()
    assert all((weights[name] == same[name]).all() for name in weights)
