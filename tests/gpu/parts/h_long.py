"""Part H: seconds of a checkpoint, a best model and a resume; caching and validating; memory over many lengths."""

import json
import subprocess
import time
from pathlib import Path

from ccts_dist.distributed import Ranks
from ccts_dist.model.folder import save_model
from ccts_dist.scoring.predict_split import evaluate
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.teacher import cache_teacher
from tests.gpu.large import first_batch, make_seconds, step, write_large_run
from tests.gpu.material import ROOT
from tests.gpu.outcome import Outcome, check
from tests.gpu.situation import Situation, run_part
from tests.gpu.steps import Training, training
from tests.gpu.supervision import python
from tests.helpers.processes.launching import environment

ALLOCATORS = {"fixed segments": "expandable_segments:False", "expandable segments": "expandable_segments:True"}
"""Values of PYTORCH_ALLOC_CONF."""

MOST_S = 180.0
"""Of a run of many lengths, on a CPU that others share; a GPU's ends long before."""


def long_runs(outcome: Outcome, situation: Situation) -> None:
    """What a long run pays for beside its steps."""
    make_seconds(situation)
    config = write_large_run(situation, "long")
    saved = situation.work / "saved"
    saved.mkdir()
    with training(config) as ready:
        step(ready, first_batch(ready))
        with outcome.item("checkpoint") as figures:
            began = time.monotonic()
            written = ready.engine.save(saved)
            figures |= {"seconds": time.monotonic() - began, "GB": sum(size for size, _ in written.values()) / 1e9}
            outcome.show("checkpoint", f"{figures['seconds']:.1f} s for {figures['GB']:.2f} GB")
        with outcome.item("best model") as figures:
            figures["seconds"] = _save_best(ready, situation.work / "best")
            outcome.show("best model", f"{figures['seconds']:.1f} s")
        with outcome.item("validation") as figures:
            loader = ready.experiment.valid_loader
            ready.engine.train(False)
            began = time.monotonic()
            evaluate(ready.engine.forward, loader, ready.run.model.targets, (1 / 3,) * 3, ready.engine.device)
            figures["utterances/s"] = loader.num_utterances / (time.monotonic() - began)
            outcome.show("validation", f"{figures['utterances/s']:.0f}/s")
    with outcome.item("resume") as figures, training(config, resume_from=saved) as again:
        figures["seconds"] = again.seconds
        outcome.show("resume", f"{figures['seconds']:.1f} s")
    with outcome.item("teacher cache") as figures:
        shards = open_shard_set(situation.pack / "shards")
        began = time.monotonic()
        summary = cache_teacher(
            [situation.pack / "teacher"], shards, situation.work / "cache", ranks=Ranks(), device=situation.device
        )
        figures["utterances/s"] = summary.num_utterances / (time.monotonic() - began)
        outcome.show("teacher cache", f"{figures['utterances/s']:.0f}/s")
    for name, setting in ALLOCATORS.items():
        with outcome.item(f"memory over many lengths, {name}") as figures:
            if name == "expandable segments":
                situation.needs_gpu()
            figures |= _memory_over_lengths(config, situation, setting)
            outcome.show(f"reserved GB, {name}", f"{figures['reserved GB'][0]:.2f} to {figures['reserved GB'][1]:.2f}")
            grown = figures["reserved GB"][1] - figures["reserved GB"][0]
            check(grown <= max(0.1, 0.02 * figures["reserved GB"][0]), f"reserved memory grows: {figures}")
            check(figures["host GB"][1] - figures["host GB"][0] <= 0.1, f"host memory grows: {figures}")


def _save_best(ready: Training, folder: Path) -> float:
    began = time.monotonic()
    save_model(
        folder, ready.engine.full_state(), ready.run.model, encoders=ready.experiment.model.encoder_configs,
        scale=(1.0, 7.0), extra={},
    )  # fmt: skip
    return time.monotonic() - began


def _memory_over_lengths(config: Path, situation: Situation, setting: str) -> dict[str, list[float]]:
    """Half way through many steps of varied lengths and at their end, in a process of its own."""
    steps = 30 if situation.small else 200
    answer = situation.work / f"lengths-{setting[-4:]}.json"
    command = python("tests.gpu.under_launcher.varied_steps", str(config), str(steps), str(answer))
    env = environment({"PYTORCH_ALLOC_CONF": setting})
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, timeout=MOST_S)
    check(done.returncode == 0, f"exit code {done.returncode}")
    return json.loads(answer.read_text())


if __name__ == "__main__":
    run_part("H", long_runs)
