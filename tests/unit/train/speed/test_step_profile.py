"""The table of a profiled step by hand-worked numbers, and when a training is profiled."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError
from ccts_dist.train.speed import step_profile
from ccts_dist.train.speed.step_profile import (
    BACKWARD,
    DATA_WAIT,
    FORWARD,
    LOSS,
    REST,
    TABLE,
    TRACE,
    Span,
    StepProfiler,
    check_profiled_steps,
    own_seconds,
    step_table,
    timed,
)
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run

CPU = torch.device("cpu")

SPANS = [
    Span(part=REST, parent=None, host_s=0.100),
    Span(part=DATA_WAIT, parent=0, host_s=0.010),
    Span(part=LOSS, parent=0, host_s=0.070),
    Span(part=FORWARD, parent=2, host_s=0.020),
    Span(part=FORWARD, parent=2, host_s=0.010),
    Span(part=BACKWARD, parent=2, host_s=0.030),
    Span(part=REST, parent=None, host_s=0.100),
]
"""Two steps; the second does nothing that is marked."""


def test_part_is_what_it_took_without_the_parts_within():
    found = {part: (round(host, 6), calls) for part, (host, _, calls) in own_seconds(SPANS).items()}
    assert found == {
        REST: (0.120, 2), DATA_WAIT: (0.010, 1), LOSS: (0.010, 1), FORWARD: (0.030, 2), BACKWARD: (0.030, 1),
    }  # fmt: skip


def test_table_is_of_the_mean_step():
    rows = {line.split("|")[1].strip(): line for line in step_table(SPANS, 2)}
    assert rows[FORWARD] == "| forward | 1 | 15.00 | 15.0% |"
    assert rows[DATA_WAIT] == "| data wait | 0.5 | 5.00 | 5.0% |"
    assert rows["optimizer step"] == "| optimizer step | 0 | 0.00 | 0.0% |"
    assert rows["**step**"] == "| **step** | 1 | 100.00 | 100.0% |"


def test_table_on_a_gpu_has_the_time_of_its_queue():
    spans = [
        Span(part=REST, parent=None, host_s=0.010, device_s=0.050),
        Span(part=FORWARD, parent=0, host_s=0.002, device_s=0.030),
    ]
    rows = step_table(spans, 1)
    assert rows[0] == "| part | calls a step | host, ms | share | GPU queue, ms |"
    assert "| forward | 1 | 2.00 | 20.0% | 30.00 |" in rows
    assert "| figures, tracking and the rest | 1 | 8.00 | 80.0% | 20.00 |" in rows


def test_marks_do_nothing_outside_of_profiled_steps(tmp_path):
    profiler = StepProfiler((3, 3), tmp_path, CPU, title="run")
    for step in (1, 2):
        profiler.begin(step)
        with timed(FORWARD):
            assert step_profile._recorder is None
        profiler.end(step)
    profiler.begin(3)
    with timed(LOSS), timed(FORWARD):
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert step_profile._recorder is not None
    assert [(span.part, span.parent) for span in step_profile._recorder.spans()[1:]] == [(LOSS, 0), (FORWARD, 1)]
    profiler.end(3)
    assert step_profile._recorder is None
    with gzip.open(tmp_path / "profile" / TRACE) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {REST, LOSS, FORWARD, "aten::mm"} <= names
    assert "run, steps 3 to 3" in (tmp_path / "profile" / TABLE).read_text()


def test_profile_that_cannot_be_written_stops_nothing(tmp_path, capfd):
    profiler = StepProfiler((1, 1), tmp_path / "vanished", CPU, title="run")
    profiler.begin(1)
    profiler.end(1)
    profiler.close()
    assert "the profile of steps 1 to 1 is lost" in "".join(capfd.readouterr())


def test_training_that_ends_within_the_steps_writes_none(tmp_path, capfd):
    profiler = StepProfiler((1, 2), tmp_path, CPU, title="run")
    profiler.begin(1)
    profiler.end(1)
    profiler.begin(2)
    profiler.close()
    assert step_profile._recorder is None
    assert not (tmp_path / "profile").exists()
    assert "no profile is written" in "".join(capfd.readouterr())


@pytest.mark.parametrize("steps", ["[5, 2]", "[5]", "[1, 2, 3]"])
def test_steps_that_are_no_first_and_last_are_refused(tmp_path, steps):
    config = write_run(tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.profile = .*: must be the first and the last step"):
        read_run(config, [f"train.profile={steps}"])


def test_steps_beyond_the_run_are_refused():
    check_profiled_steps((), 10)
    check_profiled_steps((9, 10), 10)
    with pytest.raises(ConfigError, match=r"train\.profile = \[9, 11\]: training has 10 steps in all"):
        check_profiled_steps((9, 11), 10)


@pytest.mark.integration
def test_run_that_goes_on_beyond_the_steps_is_not_profiled_and_one_within_them_is(tmp_path):
    build_two_kinds(tmp_path, num_train=32, num_valid=4)
    config = write_run(
        tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run",
        data={"test_splits": []}, train={"epochs": 9, "max_steps": 2},
    )  # fmt: skip
    output = train_plainly(config)
    train_plainly(config, "train.max_steps=4", "train.profile=[1, 2]", resume="auto")
    assert not (output / "profile").exists()
    train_plainly(config, "train.max_steps=6", "train.profile=[4, 6]", resume="auto")
    assert "steps 5 to 6" in (output / "profile" / TABLE).read_text()
    assert [step["step"] for step in read_history(output)] == [1, 2, 3, 4, 5, 6]


def test_steps_beyond_the_run_are_refused_by_the_training(tmp_path: Path):
    build_two_kinds(tmp_path, num_train=32, num_valid=4)
    config = write_run(tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run", train={"max_steps": 4})
    with pytest.raises(ConfigError, match="training has 4 steps in all"):
        train_plainly(config, "train.profile=[3, 5]")
