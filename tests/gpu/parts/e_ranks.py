"""Part E: two ranks on the one device, over gloo: the losses of one rank, under every ZeRO stage with partitions."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.material import ROOT, write_run
from tests.gpu.outcome import Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.helpers.processes.launching import environment, inner_launcher
from tests.helpers.ranks.trainings import Job, run_trainings

STAGES = ("zero1", "zero2", "zero3")
NUM_STEPS = 3
TOLERANCE = 1e-5
LAUNCH_S = 75.0
WORKER = "tests/gpu/under_launcher/train_each.py"


def ranks(outcome: Outcome, situation: Situation) -> None:
    """Train, validate and save: by one rank, then by two, a stage after the other."""
    with outcome.item("one rank") as figures:
        run_trainings([Job(config=_config(situation, "zero2", "alone"))])
        figures["losses"] = _losses(situation.work / "alone")
    alone = figures.get("losses", [])
    waiting = list(STAGES)
    while waiting:
        # A stage that fails takes the ranks with it: those behind it are launched anew.
        began = time.monotonic()
        reported = _launch([_config(situation, stage, stage) for stage in waiting], situation)
        for stage in list(waiting):
            waiting.remove(stage)
            with outcome.item(f"two ranks, {stage}") as figures:
                _compare(situation.work / stage, reported, alone, figures)
            if f"two ranks, {stage}" in outcome.failed:
                break
        outcome.show("launched", f"{time.monotonic() - began:.0f} s")


def _config(situation: Situation, stage: str, name: str) -> Path:
    return write_run(
        situation.work / f"{name}.toml", situation.pack,
        batch={"global_batch_size": 16, "micro_batch_size": 8},
        train={"deepspeed": f"ds_configs/{stage}.json", "max_steps": NUM_STEPS, "comm_timeout_s": 60.0},
    )  # fmt: skip


def _launch(configs: Sequence[Path], situation: Situation) -> str:
    """Train each on two ranks; what they reported."""
    env = environment({"CCTS_BACKEND": "gloo"} if situation.on_gpu else {})
    command = [*inner_launcher(2), WORKER, *map(str, configs)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LAUNCH_S * (1 + 2 * situation.small),
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return f"ran longer than {late.timeout:.0f} s"
    print(done.stdout[-2000:], done.stderr[-6000:], flush=True)
    return f"exit code {done.returncode}: {_last_error(done.stderr)}"


def _last_error(words: str) -> str:
    """The line that states most of what went wrong: the last one that reads like an exception."""
    lines = [line.strip() for line in words.splitlines() if "Error" in line and "File " not in line]
    return lines[-1][:400] if lines else ""


def _compare(folder: Path, reported: str, alone: Sequence[float], figures: dict[str, Any]) -> None:
    check((folder / "summary.json").exists(), f"did not end; {reported}")
    summary: Mapping[str, Any] = json.loads((folder / "summary.json").read_text())
    losses = _losses(folder)
    figures |= {"losses": losses, "valid": summary["valid"]}
    check(len(losses) == len(alone) == NUM_STEPS, f"{len(losses)} steps of two ranks, {len(alone)} of one")
    apart = max(abs(mine - theirs) / max(1.0, abs(theirs)) for mine, theirs in zip(losses, alone, strict=True))
    figures["apart"] = apart
    check(apart <= TOLERANCE, f"losses {losses}, and {list(alone)} of one rank")
    check(any((folder / "checkpoints").glob("step-*/*.safetensors")), "no checkpoint")


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "history.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    run_part("E", ranks)
