"""One run on two ranks, then one, then three, and under every ds_config, each under the real launcher."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.processes.launching import launch_well
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run

STEPS = 30

LEGS = ((2, "zero2", 7), (1, "zero0", 13), (3, "zero3", 19), (2, "zero3_offload", 25), (2, "zero1", STEPS))
"""Ranks, ds_config and the step at which the run is stopped; four steps make an epoch, so most lie within one."""


@pytest.mark.long
def test_run_moves_between_ranks_and_stages_and_ends_as_if_it_had_not(tmp_path):
    build_two_kinds(tmp_path)

    def config(name: str) -> tuple[Path, Path]:
        output = tmp_path / "runs" / name
        path = write_run(
            tmp_path / f"{name}.toml", tmp_path / "shards", output,
            batch={"micro_batch_size": 8}, train={"max_steps": STEPS, "deepspeed": "ds_configs/zero2.json"},
        )  # fmt: skip
        return path, output

    path, undisturbed = config("undisturbed")
    launch_well(2, "launch/train.py", "--config", str(path), timeout_s=900)
    path, moved = config("moved")
    for ranks, stage, until in LEGS:
        printed = launch_well(
            ranks, "launch/train.py", "--config", str(path), "--resume", "auto",
            "--set", f"train.max_steps={until}", "--set", f"train.deepspeed=ds_configs/{stage}.json", timeout_s=900,
        )  # fmt: skip
        assert len(read_history(moved)) == until
    assert "train.deepspeed: 'ds_configs/zero3_offload.json' -> 'ds_configs/zero1.json'" in printed

    one, other = read_history(undisturbed), read_history(moved)
    assert [step["keys"] for step in one] == [step["keys"] for step in other]
    losses = np.array([[step["train/loss"] for step in steps] for steps in (one, other)])
    assert np.abs(losses[0] - losses[1]).max() <= 1e-5
    assert losses[0, 0] != losses[0, -1], "nothing was learnt, so nothing was compared"
    for folder in ("last", "best"):
        weights = [load_file(output / folder / "model.safetensors") for output in (undisturbed, moved)]
        assert weights[0].keys() == weights[1].keys()
        assert max(np.abs(weights[0][name] - weights[1][name]).max() for name in weights[0]) <= 1e-5
