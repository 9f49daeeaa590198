"""Part D: checkpoints that every ZeRO stage writes alike and goes on from; what is not finite, does not fit, or is
stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ccts_dist.batches import StepBatches
from ccts_dist.train.steps.step import train_step
from tests.gpu.material import ROOT, write_run
from tests.gpu.outcome import Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import Training, training
from tests.helpers.ranks.trainings import Job, run_trainings

STAGES = ("zero0", "zero1", "zero2", "zero3")
SAVED_AT, MORE = 3, 2
STOPPED = 75
OOM_BYTES = 250_000_000
"""Enough for the demo's student and its optimizer, and not for ZeRO-2's bucket of 200 MB beside all training utterances
in one micro-batch."""

_IN_LITTLE_MEMORY = (
    "import runpy, sys, torch\n"
    "total = torch.cuda.get_device_properties(0).total_memory\n"
    "torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)) / total)\n"
    "sys.argv[0] = 'launch/train.py'\n"
    "runpy.run_path('launch/train.py', run_name='__main__')\n"
)


def saves(outcome: Outcome, situation: Situation) -> None:
    """Saving, resuming, and what must move no weights."""
    for precision in ("fp32",) if situation.small else ("fp32", "bf16"):
        _save_and_resume(outcome, situation, precision)
    for stage in STAGES:
        with outcome.item(f"what is not finite moves no weights: {stage}"):
            _move_no_weights(situation, stage)
    with outcome.item("out of memory is one line") as figures:
        situation.needs_gpu()
        _run_out_of_memory(situation, figures)
    with outcome.item("SIGTERM, exit code 75, resumed") as figures:
        _stop_and_resume(situation, figures)
        outcome.show("stopped after", f"{figures['seconds to stop']:.1f} s")


def _config(situation: Situation, stage: str, precision: str, name: str = "", **sections: Any) -> Path:
    train = {"deepspeed": f"ds_configs/{stage}.json", "precision": precision, "max_steps": SAVED_AT, "epochs": 5}
    return write_run(
        situation.work / f"{name or stage}-{precision}.toml", situation.pack,
        optim={"name": "adam", "learning_rate": 1e-3, "max_grad_norm": 1.0},
        **{"train": train, **sections},
    )  # fmt: skip


def _save_and_resume(outcome: Outcome, situation: Situation, precision: str) -> None:
    """A run under stage 2; every stage writes its checkpoint anew, bit by bit the same, and takes steps from it."""
    source = situation.work / f"source-{precision}"
    with outcome.item(f"{precision}: a run of {SAVED_AT} steps") as figures:
        run_trainings([Job(config=_config(situation, "zero2", precision, "source"))])
        figures["losses"] = _losses(source)
    checkpoint = _checkpoint(source, SAVED_AT)
    written = _tensors(checkpoint)
    later: dict[str, list[float]] = {}
    for stage in STAGES:
        config, folder = _config(situation, stage, precision), situation.work / f"{stage}-{precision}"
        with outcome.item(f"{precision}: {stage} writes the same bits") as figures:
            # Under a limit that is reached, a run only writes its checkpoint anew.
            run_trainings([Job(config=config, continues=checkpoint, resume="auto")])
            anew = _tensors(_checkpoint(folder, SAVED_AT))
            figures["files"] = sorted(anew)
            check(len(anew) >= 2 and anew.keys() == written.keys(), f"{sorted(anew)}, and {sorted(written)} before")
            check(anew == written, f"other bits: {[name for name in anew if anew[name] != written[name]]}")
        with outcome.item(f"{precision}: {stage} goes on") as figures:
            run_trainings([Job(config=config, set=(f"train.max_steps={SAVED_AT + MORE}",), resume="auto")])
            later[stage] = _losses(folder)[SAVED_AT:]
            figures["losses"] = later[stage]
            check(len(later[stage]) == MORE, f"{len(later[stage])} more steps, and {MORE} were asked for")
            apart = max(abs(mine - first) for mine, first in zip(later[stage], later[min(later)], strict=True))
            tolerance = 1e-4 if precision == "fp32" else 2e-2
            check(apart <= tolerance, f"{later}")


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "history.jsonl").read_text().splitlines()]


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def _tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def _move_no_weights(situation: Situation, stage: str) -> None:
    """A gradient of NaN, then a loss that is infinite; then a good step, which does move them."""
    with training(_config(situation, stage, "fp32", f"bad-{stage}")) as ready:
        batches = next(iter(ready.experiment.loader.epoch(0)))
        before = ready.engine.full_state()
        output = ready.engine.forward(batches.micro_batches[0].to(ready.engine.device))
        ready.engine.start_step(1)
        ready.engine.backward(output.prediction.sum() * float("nan"))
        check(ready.engine.step().skipped, "a gradient of NaN was not skipped")
        _check_same(ready, before, "a gradient of NaN")
        result = _step(ready, _louder(batches, float("inf")))
        check(result.update is None, f"the loss {result.loss} was backpropagated")
        _check_same(ready, before, "an infinite loss")
        result = _step(ready, batches)
        check(result.update is not None and not result.update.skipped, "a good step was skipped")
        now = ready.engine.full_state()
        check(any(not torch.equal(before[name], now[name]) for name in before), "a good step moved no weights")


def _step(ready: Training, batches: StepBatches) -> Any:
    return train_step(ready.engine, batches, ready.experiment.objective, seed=ready.run.seed)


def _louder(batches: StepBatches, factor: float) -> StepBatches:
    return replace(
        batches, micro_batches=tuple(replace(one, audio=one.audio * factor) for one in batches.micro_batches)
    )


def _check_same(ready: Training, before: dict[str, torch.Tensor], what: str) -> None:
    now = ready.engine.full_state()
    moved = [name for name in before if not torch.equal(before[name], now[name])]
    check(not moved, f"{what} moved {moved[:3]}")


def _run_out_of_memory(situation: Situation, figures: dict[str, Any]) -> None:
    """All training utterances in one micro-batch, with the memory of a small GPU: one line names the key to lower."""
    config = _config(situation, "zero2", "fp32", "oom", batch={"global_batch_size": 160, "micro_batch_size": 160})
    command = [sys.executable, "-c", _IN_LITTLE_MEMORY, str(OOM_BYTES), "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    figures |= {"exit code": done.returncode, "words": done.stderr[-600:]}
    check(done.returncode not in (0, 75) and done.returncode > 0, f"exit code {done.returncode}")
    check("batch.micro_batch_size" in done.stderr, "no word on batch.micro_batch_size")
    check("Traceback" not in done.stderr, "a traceback")


def _stop_and_resume(situation: Situation, figures: dict[str, Any]) -> None:
    config = _config(situation, "zero2", "fp32", "stopped", train={"epochs": 10_000})
    folder = config.with_suffix("")
    process = _start(config)
    try:
        while not (folder / "history.jsonl").exists() or len(_losses(folder)) < SAVED_AT:
            check(process.poll() is None, f"ended by itself with {process.returncode}")
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    finally:
        process.kill()
    figures |= {"seconds to stop": time.monotonic() - began, "exit code": code, "steps": len(_losses(folder))}
    check(code == STOPPED, f"exit code {code} after SIGTERM, and {STOPPED} was expected")
    steps = len(_losses(folder))
    again = _start(config, "--resume", "auto", "--set", f"train.max_steps={steps + MORE}")
    code = again.wait()
    check(code == 0, f"exit code {code} after resuming")
    check(len(_losses(folder)) == steps + MORE, f"{len(_losses(folder))} steps, and {steps + MORE} were asked for")


def _start(config: Path, *args: Sequence[str] | str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "launch/train.py", "--config", str(config), *map(str, args)], cwd=ROOT)


if __name__ == "__main__":
    run_part("D", saves)
