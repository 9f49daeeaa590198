"""A training on two shard sets: the same on any ranks, and resumed; it is recorded what it was trained on."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import build_two_kinds, read_history, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

STEPS = 8


def test_losses_and_weights_agree_on_any_ranks_and_after_a_resume(tmp_path):
    build_two_kinds(tmp_path, num_train=24)
    other = build_two_kinds(tmp_path / "other", num_train=10)

    def job(name: str, stage: str, continues: Path | None = None) -> Job:
        config = write_run(
            tmp_path / f"{name}.toml", tmp_path / "shards", tmp_path / "runs" / name,
            data={"extra_shards": [{"shards": str(tmp_path / "other" / "shards"), "share": 0.25}]},
            optim={"learning_rate": 0.1},
            train={"max_steps": STEPS, "save_steps": 3, "save_total_limit": 9,
                   "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")},
        )  # fmt: skip
        return Job(config=config, continues=continues, resume="auto" if continues else "")

    run_on_ranks(run_trainings, 1, [job("one", "zero0")], timeout_s=300)
    middle = tmp_path / "runs/one/checkpoints/step-00000003"
    two = [job("two", "zero2"), job("resumed", "zero2", continues=middle)]
    run_on_ranks(run_trainings, 2, two, timeout_s=300)
    plain = read_history(tmp_path / "runs/one")
    assert np.ptp([step["train/loss"] for step in plain]) > 0.01, "nothing was learnt, so nothing was compared"
    weights = load_file(tmp_path / "runs/one/last/model.safetensors")
    for name in ("two", "resumed"):
        history = read_history(tmp_path / "runs" / name)
        assert [step["keys"] for step in history] == [step["keys"] for step in plain]
        np.testing.assert_allclose(
            [step["train/loss"] for step in history], [step["train/loss"] for step in plain], atol=1e-5
        )
        others = load_file(tmp_path / "runs" / name / "last" / "model.safetensors")
        assert max(np.abs(weights[key] - others[key]).max() for key in weights) <= 1e-5
    extra = json.loads((tmp_path / "runs/one/best/model.json").read_text())["extra"]
    assert extra["extra_shards"] == [other.digest]
