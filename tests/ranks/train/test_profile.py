"""Profiled steps of a training on two ranks under DeepSpeed."""

import gzip
import json

from ccts_dist.train.speed.step_profile import PARTS, TABLE, TRACE
from tests.helpers.processes.small_runs import build_two_kinds, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings


def test_first_rank_writes_a_trace_and_a_table_of_the_steps(tmp_path):
    build_two_kinds(tmp_path, num_train=48, num_valid=4)
    config = write_run(
        tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run",
        data={"test_splits": []}, batch={"micro_batch_size": 4, "forward_rounds": "two"},
        train={"max_steps": 3, "profile": [2, 3]},
    )  # fmt: skip
    run_on_ranks(run_trainings, 2, [Job(config=config)])
    table = (tmp_path / "run" / "profile" / TABLE).read_text()
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    calls = {part: calls for part, calls, *_ in rows}
    # Two micro-batches in each of the two steps, each with a forward pass for the sums and one for the gradient.
    assert [float(calls[part]) for part in PARTS] == [0.5, 4, 1, 1, 2, 2, 1]
    with gzip.open(tmp_path / "run" / "profile" / TRACE) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert set(PARTS) <= set(names)
    assert any("allreduce" in (name or "").replace("_", "").lower() for name in names)
