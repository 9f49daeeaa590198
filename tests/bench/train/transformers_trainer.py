"""Training with batches of random composition against the transformers Trainer: seconds of audio per second.

    python -m tests.bench.train.transformers_trainer            5 turns of 12 steps of 16 utterances, and of 6 of 32
    python -m tests.bench.train.transformers_trainer --quick    2 turns of half as many

The same HuBERT of four layers with the same loss, utterances of 2.5 to 11 s, float32, AdamW, on the same cores. Ours:
one rank under ZeRO-2, `data.bucket_batches = 1`, `batch.micro_batch_seconds`, the exact CCC of the whole batch. Theirs:
its random sampler, and a collator that pads to the longest. The two take turns, each in a process of its own, whose
first steps warm up. A ratio is the median of the turns' ratios. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import soundfile

from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import write_run

SIDES = ("ours", "trainer")
BATCHES = (16, 32)
WARM_UP = 2
TARGET = 1.3
SHORTEST_S, LONGEST_S = 2.5, 11.0
MODEL = {
    "embedding_dim": 128,
    "speech": {
        "encoder": "scratch",
        "train_feature_encoder": True,
        "pooling": "mean",
        "scratch": {
            "model_type": "hubert",
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "conv_dim": [128] * 7,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "layerdrop": 0.0,
        },
    },
}


def main() -> None:
    """Measure in turns, and print the table."""
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        steps = {size: options.steps * BATCHES[0] // size for size in BATCHES}
        _build(Path(place), (WARM_UP + options.steps) * max(BATCHES))
        for size in BATCHES:
            config = write_run(
                Path(place) / f"{size}.toml", Path(place) / "shards", Path(place) / "run",
                data={"num_workers": 1}, model=MODEL,
                batch={"global_batch_size": size, "micro_batch_size": size, "micro_batch_seconds": options.seconds},
                optim={"name": "adamw", "learning_rate": 1e-4, "max_grad_norm": 1.0},
            )  # fmt: skip
            turns = []
            for turn in range(options.turns):
                sides = SIDES[:: 1 if turn % 2 == 0 else -1]
                turns.append({side: _measure(side, config, Path(place), size, steps[size]) for side in sides})
                print(f"batches of {size}, turn {turn + 1}: {turns[-1]}", file=sys.stderr)
            rows.append((size, turns))
    print(_table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns of half the steps")
    parser.add_argument("--turns", type=int, metavar="N", help="default 5")
    parser.add_argument("--steps", type=int, metavar="N", help="of 16 utterances, without warming up; default 12")
    parser.add_argument("--seconds", type=float, default=90.0, help="batch.micro_batch_seconds (%(default)s)")
    options = parser.parse_args()
    options.turns = options.turns or (2 if options.quick else 5)
    options.steps = options.steps or (6 if options.quick else 12)
    return options


def _build(folder: Path, count: int) -> None:
    """Noise of random durations, whose ratings are drawn too: what is measured is time."""
    generator = np.random.default_rng(7)
    utterances = []
    for number in range(count):
        split = "Train" if number >= 8 else ("Development", "Test1")[number % 2]
        audio = folder / f"{number}.wav"
        num_samples = int(generator.uniform(SHORTEST_S, LONGEST_S) * 16_000)
        soundfile.write(audio, generator.normal(0, 2_000, num_samples).astype(np.int16), 16_000, subtype="PCM_16")
        labels = dict(zip(DIMENSIONS, map(float, generator.uniform(0, 1, 3)), strict=True))
        utterances.append(Utterance(key=f"u{number}", audio=audio, split=split, labels=labels, scale=(1.0, 7.0)))
    build_shard_set(
        utterances, folder / "shards", corpus="noise", release="1", scale=(1.0, 7.0), targets=DIMENSIONS, root=folder
    )


def _measure(side: str, config: Path, place: Path, size: int, steps: int) -> dict[str, float]:
    """Seconds of audio per second of wall time, and per second of CPU time, of one process."""
    cores = len(os.sched_getaffinity(0))
    out = place / "out.json"
    words = [side, str(config), str(size), str(WARM_UP), str(steps), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", "tests.bench.train.under_launcher.time_training", *words],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    reported = json.loads(out.read_text())
    return {"wall": reported["audio_s"] / reported["wall_s"], "cpu": reported["audio_s"] / reported["cpu_s"]}


def _table(rows: list[tuple[int, list[dict[str, dict[str, float]]]]]) -> str:
    lines = [
        f"Medians of {len(rows[0][1])} turns; in brackets the range; load now {os.getloadavg()[0]:.1f}.",
        "",
        f"| batches of | ours, s of audio/s | Trainer | ratio | ratio by CPU time | at least {TARGET} |",
        "|--:|--:|--:|--:|--:|:--|",
    ]
    for size, turns in rows:
        ours, theirs = (median(turn[side]["wall"] for turn in turns) for side in SIDES)
        ratios = {
            clock: sorted(turn["ours"][clock] / turn["trainer"][clock] for turn in turns) for clock in turns[0]["ours"]
        }
        shown = [f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})" for found in ratios.values()]
        within = "yes" if median(ratios["wall"]) >= TARGET else "no"
        lines.append(f"| {size} | {ours:.1f} | {theirs:.1f} | {shown[0]} | {shown[1]} | {within} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
