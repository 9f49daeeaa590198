"""What a checkpoint and a step do when they fail on one rank alone, under every ds_config."""

import os
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from ccts_dist.config import parse_run
from ccts_dist.distributed import barrier, rank_facts
from ccts_dist.errors import OutputError
from ccts_dist.train.checkpoints.checkpoint import CheckpointFiles, TrainState, find_checkpoint, write_checkpoint
from ccts_dist.train.checkpoints.writer import CheckpointWriter
from ccts_dist.train.zero.ds_config import read_ds_config
from ccts_dist.train.zero.engine import Engine
from ccts_dist.train.zero.files import Snapshot
from tests.helpers.processes.launching import ROOT, environment
from tests.helpers.ranks.processes import run_on_ranks

SHIPPED = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
CASES = [(stage, precision) for stage in SHIPPED for precision in ("fp32", "bf16")]


def write_in_the_way(output: Path) -> tuple[str, list[str]]:
    """On one rank: a checkpoint, then one whose folder rank 0 cannot make."""
    ranks = rank_facts()

    def save(step: int) -> None:
        write_checkpoint(
            output, TrainState(step=step), run={}, plan_digest="", ranks=ranks, save_engine=lambda _: {}, keep=2
        )

    save(1)
    if ranks.is_first:
        (output / "checkpoints" / "step-00000002.partial").write_text("in the way")
    barrier()
    with pytest.raises(OutputError) as caught:
        save(2)
    (output / "checkpoints" / "step-00000002.partial").unlink(missing_ok=True)
    found = find_checkpoint(output, lambda _: None)
    assert found is not None
    return str(caught.value), [found[0].name]


def test_checkpoint_that_rank_0_cannot_write_is_an_error_on_all(tmp_path):
    reported = run_on_ranks(write_in_the_way, 2, tmp_path)
    assert reported[0] == reported[1]
    assert "step-00000002.partial: cannot be written" in reported[0][0]
    assert reported[0][1] == ["step-00000001"]


def build_engine(stage: str, precision: str) -> Engine:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate allows one Accelerator per process
    run = parse_run(
        {
            "run_name": "r",
            "output_dir": "o",
            "data": {"shards": "s"},
            "model": {"speech": {"encoder": "e"}},
            "batch": {"global_batch_size": 2, "micro_batch_size": 1},
            "optim": {"max_grad_norm": 1.0},  # DeepSpeed clips before it steps, and wants gradients for it
            "train": {"deepspeed": str(ROOT / "ds_configs" / f"{stage}.json"), "precision": precision},
        }
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "lr": 1e-2, "name": "rest"}], weight_decay=0.1)
    ds_config = read_ds_config(Path(run.train.deepspeed))
    return Engine(model, optimizer, run, ds_config=ds_config, ranks=rank_facts())


def shared_buffers() -> list[str]:
    """On one rank: what of an engine lies in the host's memory under a name."""
    build_engine("zero2", "fp32")
    barrier()
    return [path.name for path in Path("/dev/shm").glob(f"*_{os.environ['MASTER_PORT']}_*")]


def test_engine_leaves_nothing_in_the_hosts_memory():
    assert run_on_ranks(shared_buffers, 2) == [[], []]


def imported_for_nothing() -> list[str]:
    """On one rank, in a process of its own: what an engine has imported and no run makes use of."""
    compile_function = torch.compile
    build_engine("zero2", "fp32")
    found = [name for name in ("mlflow", "torch._inductor.compile_fx") if name in sys.modules]
    assert torch.compile is compile_function
    assert find_spec("mlflow") is not None, "tracking can still import it"
    return found


def test_engine_starts_without_what_no_run_makes_use_of():
    program = "import tests.ranks.train.zero.test_engine as test; assert test.imported_for_nothing() == []"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def waits_for_the_whole_device() -> dict[str, list[str]]:
    """On one rank: what waits for all that the device has to do, in steps of training and in validation."""
    from deepspeed.accelerator import get_accelerator

    accelerator, waits = get_accelerator(), []
    accelerator.synchronize = lambda *_: waits.append("".join(traceback.format_stack(limit=4)))
    reported = {}
    for case in (("zero0", "fp32"), ("zero2", "bf16"), ("zero3", "fp32")):
        engine = build_engine(*case)
        engine.train(True)
        waits.clear()
        for _ in range(3):
            take_step(engine, 1.0)
        engine.train(False)
        with torch.no_grad():
            engine._engine(torch.ones(4, 5, dtype=next(engine._engine.module.parameters()).dtype))
        reported["-".join(case)] = list(waits)
    return reported


def test_no_step_and_no_validation_waits_for_the_whole_device():
    (reported,) = run_on_ranks(waits_for_the_whole_device, 1)
    assert reported == {"zero0-fp32": [], "zero2-bf16": [], "zero3-fp32": []}


def take_step(engine: Engine, factor: float) -> bool:
    """One step on a loss times ``factor``; whether it was skipped."""
    dtype = next(engine._engine.module.parameters()).dtype
    engine.start_step(1)
    engine.backward(engine._engine(torch.ones(4, 5, dtype=dtype)).float().pow(2).mean() * factor)
    return engine.step().skipped


def write_beside(folder: Path) -> dict[str, object]:
    """On one rank: a copy is written while training goes on, and then what cannot be written."""
    ranks, reported = rank_facts(), {}
    for case in (("zero0", "fp32"), ("zero1_gpu", "fp32"), ("zero2_gpu", "bf16")):
        engine, whole, copied = build_engine(*case), folder / f"{case[0]}-whole", folder / f"{case[0]}-copied"
        take_step(engine, 1.0)
        if ranks.is_first:
            whole.mkdir()
            copied.mkdir()
        barrier()
        written = engine.save(whole)
        snapshot = engine.snapshot()
        take_step(engine, 1.0)
        reported[f"{case[0]} alike"] = (snapshot.write(copied) if ranks.is_first else {}) == written
    writer = CheckpointWriter(ranks)
    for step in (1, 2):
        files = CheckpointFiles(folder, TrainState(step=step), run={}, plan_digest="", ranks=ranks, keep=1)
        writer.start(files, engine.snapshot if step == 1 else lambda: Full(engine.snapshot()))
        take_step(engine, 1.0)
    with pytest.raises(OutputError) as caught:
        writer.wait()
    found = find_checkpoint(folder, lambda _: None)
    assert found is not None
    return reported | {"error": str(caught.value), "left": found[0].name, "files": len(found[1].files)}


class Full:
    """A copy that finds the disk full at its second file."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def write(self, folder: Path) -> dict[str, tuple[int, str]]:
        (folder / "exp_avg.safetensors").symlink_to("/dev/full")
        return self._snapshot.write(folder)


def test_copy_is_written_as_the_engine_would_and_a_full_disk_is_an_error_on_all(tmp_path):
    for rank in run_on_ranks(write_beside, 2, tmp_path):
        assert all(rank[f"{stage} alike"] for stage in ("zero0", "zero1_gpu", "zero2_gpu"))
        assert "exp_avg.safetensors: cannot be written or read back: No space left on device" in str(rank["error"])
        assert (rank["left"], rank["files"]) == ("step-00000001", 5)


def fail_on_one_rank(folder: Path) -> dict[tuple[str, str], dict[str, object]]:
    """On one rank, for every case: a gradient that is not finite, and a disk that is full."""
    ranks, reported = rank_facts(), {}
    for case in CASES:
        engine = build_engine(*case)
        facts: dict[str, object] = {"first step skipped": take_step(engine, 1.0)}
        before = engine.full_state()
        facts["skipped"] = take_step(engine, float("nan") if ranks.rank else 1.0)
        after = engine.full_state()
        facts["moved"] = [name for name in before if not torch.equal(before[name], after[name])]
        facts["next step skipped"] = take_step(engine, 1.0)
        later = engine.full_state()
        facts["moved later"] = [name for name in before if not torch.equal(before[name], later[name])]
        whole, full = folder / "-".join(case), folder / f"{'-'.join(case)}-full"
        if ranks.is_first:
            whole.mkdir()
            full.mkdir()
            (full / "exp_avg.safetensors").symlink_to("/dev/full")
        barrier()
        with pytest.raises(OutputError) as caught:
            engine.save(full)
        facts["error"] = str(caught.value)
        facts["written"] = sorted(engine.save(whole))
        facts["step after skipped"] = take_step(engine, 1.0)
        reported[case] = facts
    return reported


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    return run_on_ranks(fail_on_one_rank, 2, tmp_path_factory.mktemp("failures"), timeout_s=600)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_gradient_that_is_not_finite_on_one_rank_moves_no_weights_on_any(failures, case):
    for rank in failures:
        assert not rank[case]["first step skipped"]
        assert rank[case]["skipped"]
        assert rank[case]["moved"] == []
        assert not rank[case]["next step skipped"]
    assert len(failures[0][case]["moved later"]) == 4, "every weight and bias goes on"


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_disk_that_is_full_on_rank_0_is_an_error_on_all_and_leaves_them_in_step(failures, case):
    for rank in failures:
        assert "exp_avg.safetensors: cannot be written or read back: No space left on device" in rank[case]["error"]
        assert not rank[case]["step after skipped"]
    assert failures[0][case]["written"] == [
        f"{kind}.safetensors" for kind in ("exp_avg", "exp_avg_sq", "step", "weights")
    ]
    assert failures[1][case]["written"] == []
