"""Steps without a finite loss or gradient: how the training counts them."""

from dataclasses import replace
from pathlib import Path

import pytest

from ccts_dist.train.checkpoints.checkpoint import read_state
from ccts_dist.train.zero.engine import Update
from tests.helpers.models import plain_engine
from tests.helpers.processes.small_runs import build_two_kinds, write_run


class SkippingEngine(plain_engine.PlainEngine):
    """Leaves out the first two of its steps, and the fourth."""

    num_steps = 0

    def start_step(self, num_micro_batches: int) -> None:
        super().start_step(num_micro_batches)
        self.num_steps += 1

    def step(self) -> Update:
        return replace(super().step(), skipped=self.num_steps in (1, 2, 4))


def test_a_step_that_is_taken_ends_the_count_of_skipped_ones_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plain_engine, "PlainEngine", SkippingEngine)
    build_two_kinds(tmp_path, num_train=16, num_valid=4)
    config = write_run(
        tmp_path / "run.toml", tmp_path / "shards", tmp_path / "run",
        batch={"global_batch_size": 4, "micro_batch_size": 4},
        train={"epochs": 1, "max_steps": 0, "save_steps": 1, "save_total_limit": 9, "nonfinite_patience": 9},
    )  # fmt: skip
    run = plain_engine.train_plainly(config)
    states = [read_state(path) for path in sorted((run / "checkpoints").iterdir())]
    counts = {state.step: (state.skipped_in_a_row, state.num_skipped) for state in states}
    assert counts == {1: (1, 1), 2: (2, 2), 3: (0, 2), 4: (1, 3)}
