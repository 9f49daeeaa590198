"""HuBERT-large in bf16 on one GPU: speed, memory against the estimate, losses against the CPU's in fp32.

Not part of ``make test``. On a machine with a GPU: ``pytest -s tests/gpu``.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ccts_dist.train.memory import FRAGMENTATION, GPU_CONTEXT_BYTES
from tests.large_student import build_seconds, save_large_student
from tests.launching import launcher
from tests.small_runs import read_history, write_run
from tests.watching import Watched, watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none")

STEPS = 60
STEPS_TO_COMPARE = 2
NO_NOISE = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "apply_spec_augment": False}
"""GPU and CPU draw other random numbers from one seed."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    save_large_student(folder / "hubert-large", **NO_NOISE)
    build_seconds(folder, num_train=8 * STEPS, num_valid=8, shortest_s=3.0, longest_s=6.0)
    yield folder
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


def train(
    place: Path, name: str, command: list[str], *, steps: int, precision: str, env: dict[str, str]
) -> tuple[Watched, Path]:
    output = place / "runs" / name
    config = write_run(
        place / f"{name}.toml", place / "shards", output,
        data={"test_splits": [], "workers": 1},
        model={"embedding": 128, "gradient_checkpointing": False, "speech": {"encoder": str(place / "hubert-large")}},
        batch={"global_utterances": 8, "micro_utterances": 8},
        optim={"name": "adam", "learning_rate": 1e-5},
        train={"epochs": 1, "max_steps": steps, "precision": precision, "timeout_s": 900.0},
    )  # fmt: skip
    seen = watch(
        [*command, "launch/train.py", "--config", str(config)], output / "history.jsonl", timeout_s=1_800, env=env
    )
    return seen, output


def test_bf16_on_a_gpu_is_within_a_quarter_of_the_estimated_memory_and_near_the_cpus_losses(place, capsys):
    seen, output = train(place, "gpu", launcher(1), steps=STEPS, precision="bf16", env={})
    # Without a launcher, since it counts GPUs; a rank that sees no GPU trains on the CPU.
    alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    _, on_cpu = train(place, "cpu", [sys.executable], steps=STEPS_TO_COMPARE, precision="fp32", env=alone)

    losses = [[step["train/loss"] for step in read_history(folder)[:STEPS_TO_COMPARE]] for folder in (output, on_cpu)]
    peak = json.loads((output / "summary.json").read_text())["peak_memory_gb"]
    # What tensors held: without the CUDA context, and the margin on top of tensors.
    foreseen = float(re.findall(r"estimated: ([\d.]+) GB", seen.words)[-1])
    estimated = (foreseen - GPU_CONTEXT_BYTES / 1e9) / (1 + FRAGMENTATION)
    # The first steps choose kernels and fill the allocator.
    times = seen.step_times[len(seen.step_times) // 2 :]
    per_s = (len(times) - 1) / max(1e-9, times[-1] - times[0])
    with capsys.disabled():
        print(
            f"\n{torch.cuda.get_device_name()}: {per_s:.2f} steps/s of 8 utterances, "
            f"most memory of tensors {peak:.2f} GB, estimated {estimated:.2f} GB; "
            f"losses {losses[0]} (bf16), {losses[1]} (CPU, fp32)"
        )
    assert len(read_history(output)) == STEPS
    assert estimated == pytest.approx(peak, rel=0.25)
    assert np.isfinite(losses).all()
    # bfloat16 has 8 bits of mantissa: 24 layers leave an error of about a hundredth on an embedding of order one. After
    # a step of Adam, which makes a whole step of the smallest gradient, as much again.
    assert losses[0][0] == pytest.approx(losses[1][0], abs=0.05)
    assert losses[0][1] == pytest.approx(losses[1][1], abs=0.1)
