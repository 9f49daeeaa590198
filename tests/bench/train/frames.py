"""What keeping the frames of a frozen encoder saves: seconds of training with and without, in turns.

    python -m tests.bench.train.frames            5 turns of 2 epochs each
    python -m tests.bench.train.frames --quick    2 turns of 1

A frozen encoder of HuBERT-base's depth at a quarter of its width (12 layers of 192, seven convolutions), the GRU and
the heads above it trained, one rank on one core, 128 utterances of 2 to 4 s. Both ways train the same model on the same
batches; the making of the frames is timed apart. Audio is not decoded where frames are kept.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import tomli_w
import torch

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.model.emotion import parameter_groups
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.train.experiment import Experiment, open_experiment
from ccts_dist.train.optim import build_optimizer
from ccts_dist.train.steps.step import train_step
from tests.helpers.models.plain_engine import PlainEngine

ENCODER = {
    "model_type": "hubert", "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 4,
    "intermediate_size": 768, "conv_dim": [128] * 7, "feat_extract_norm": "group", "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns of 1 epoch")
    quick = parser.parse_args().quick
    turns, epochs = (2, 1) if quick else (5, 2)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        audio_s = _build(folder, 32 if quick else 128)
        began = time.perf_counter()
        cached = _experiment(folder, "frames")
        making = time.perf_counter() - began
        ways = {"encoder run in every step": _experiment(folder, ""), "frames kept": cached}
        took: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(turns):
            for way, experiment in ways.items():
                took[way].append(_train(experiment, epochs) / epochs)
            print(f"turn {turn + 1} of {turns}", file=sys.stderr)
        size = sum(path.stat().st_size for path in (folder / "frames").rglob("*.npy"))
    for way, seconds in took.items():
        print(f"{way:28} {median(seconds):7.2f} s an epoch")
    plain, ours = (took[way] for way in ways)
    ratios = sorted(a / b for a, b in zip(plain, ours, strict=True))
    print(f"ratio {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}); made in {making:.1f} s, opening included")
    print(f"{size / 1e6:.1f} MB for {audio_s:.0f} s of audio: {size / 1e9 / audio_s * 3600:.2f} GB an hour")


def _build(folder: Path, count: int) -> float:
    """A corpus of noise; its seconds of audio."""
    generator, utterances, total = np.random.default_rng(0), [], 0.0
    for number in range(count):
        samples = int(generator.integers(32_000, 64_000))
        total += samples / 16_000
        soundfile.write(folder / f"{number}.wav", generator.normal(0, 0.1, samples), 16_000)
        utterances.append(
            Utterance(
                key=str(number),
                audio=folder / f"{number}.wav",
                split="Train" if number % 8 else "Development",
                labels=dict(zip(DIMENSIONS, map(float, generator.uniform(size=3)), strict=True)),
                scale=(0.0, 1.0),
            )
        )
    build_shard_set(
        utterances, folder / "shards", corpus="noise", release="1", scale=(0.0, 1.0), targets=DIMENSIONS, root=folder
    )
    return total


def _experiment(folder: Path, frames: str) -> Experiment:
    tree: dict[str, Any] = {
        "run_name": "bench",
        "output_dir": str(folder / "run"),
        "data": {"shards": str(folder / "shards"), "num_workers": 0, "test_splits": []},
        "model": {"speech": {"encoder": "scratch", "scratch": ENCODER, "trainable": "none"}},
        "batch": {"global_batch_size": 16, "micro_batch_size": 16},
        "tracking": {"backend": "none"},
    }
    if frames:
        tree["data"]["feature_cache"] = str(folder / frames)
    config = folder / f"{frames or 'plain'}.toml"
    config.write_text(tomli_w.dumps(tree))
    return open_experiment(read_run(config), Ranks())


def _train(experiment: Experiment, epochs: int) -> float:
    """Seconds."""
    optimizer = build_optimizer(parameter_groups(experiment.model), experiment.run.optim)
    engine = PlainEngine(experiment.model, optimizer, experiment.run, ranks=experiment.ranks)
    engine.train(True)
    began = time.perf_counter()
    for epoch in range(epochs):
        for batches in experiment.loader.epoch(epoch):
            train_step(engine, batches, experiment.objective, seed=0)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
