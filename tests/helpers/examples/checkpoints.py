"""Checkpoints with a few bytes of weights, and the run that they are of."""

import hashlib
from pathlib import Path

from ccts_dist.config import RunConfig, parse_run, run_to_tree
from ccts_dist.distributed import Ranks
from ccts_dist.train.checkpoints.checkpoint import (
    TrainState,
    write_checkpoint,
)

ALONE = Ranks()
WEIGHTS = "weights.safetensors"


def run_in(output: Path, **sections: object) -> RunConfig:
    tree = {"run_name": "r", "output_dir": str(output), "data": {"shards": "s"}, "model": {"speech": {"encoder": "e"}}}
    return parse_run(tree | sections)


def save(output: Path, step: int, *, keep: int = 2, content: bytes = b"weights", run: RunConfig | None = None) -> Path:
    return write_checkpoint(
        output,
        TrainState(step=step, epoch=1, best_loss=0.5),
        run=run_to_tree(run or run_in(output)),
        plan_digest="plan",
        ranks=ALONE,
        save_engine=lambda folder: write_weights(folder, content),
        keep=keep,
    )


def write_weights(folder: Path, content: bytes) -> dict[str, tuple[int, str]]:
    (folder / WEIGHTS).write_bytes(content)
    return {WEIGHTS: (len(content), hashlib.sha256(content).hexdigest())}
