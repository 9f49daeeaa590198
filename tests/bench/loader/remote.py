"""How much of fetching a cold epoch hides behind training: a student trained from disk, and from an S3 server.

A real S3 server (moto) on this machine, slowed to so many megabytes a second per connection; a small HuBERT is trained
on one epoch by each of: shards on disk; shards of the server with an empty cache; the same with a full cache; and with
an empty cache while some requests fail. Each epoch in a fresh process; the losses must be equal.

    python -m tests.bench.loader.remote

    overlap = 1 - (seconds in which a reader waited for a shard) / (seconds in which a transfer ran)

"After it" is the waiting that came after the first batch: before it, the shards of the first window must be here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccts_dist.config import BatchConfig, DataConfig, ModelConfig, SpeechConfig
from ccts_dist.distributed import Ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.losses.ccc import concordance
from ccts_dist.model.emotion import build_model
from ccts_dist.process.seeds import seed_everything
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import open_shard_set
from tests.bench.loader import speech
from tests.helpers.processes.launching import ROOT, environment
from tests.helpers.processes.small_runs import SPEECH
from tests.helpers.servers.s3_server import Rule, s3_server

WINDOWS = 6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--utterances", type=int, default=900)
    parser.add_argument("--megabytes-per-s", type=float, default=1.5, help="of each connection; four run (%(default)s)")
    parser.add_argument("--fault-rate", type=float, default=0.05)
    parser.add_argument("--epoch", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.epoch is not None:
        print(json.dumps(train_epoch(**args.epoch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.utterances, args.megabytes_per_s * 1e6, args.fault_rate)
    print(table(rows))


def measure(folder: Path, num_utterances: int, bytes_per_s: float, fault_rate: float) -> dict[str, dict[str, Any]]:
    """The four epochs, by name."""
    window = num_utterances // WINDOWS
    make_shards(folder, num_utterances)
    rows = {"disk": run_epoch(folder / "shards", folder / "none", window, {})}
    with s3_server(folder / "server") as server:
        env = server.environment()
        for place in ("bucket/sound", "bucket/faulty"):
            server.upload(folder / "shards", place)
        server.treat(Rule(bytes_per_s=bytes_per_s))
        server.treat(Rule(place="bucket/faulty", bytes_per_s=bytes_per_s, fault_rate=fault_rate, seed=1, stall_s=45.0))
        rows["store, empty cache"] = run_epoch("s3://bucket/sound", folder / "cache", window, env)
        rows["store, full cache"] = run_epoch("s3://bucket/sound", folder / "cache", window, env)
        rows["store, empty cache, faults"] = run_epoch("s3://bucket/faulty", folder / "other", window, env)
        rows["store, empty cache, faults"]["faults"] = len(server.faults("bucket/faulty"))
    losses = {name: row.pop("losses") for name, row in rows.items()}
    assert all(loss == losses["disk"] for loss in losses.values()), "the losses differ"
    return rows


def make_shards(folder: Path, num_utterances: int) -> None:
    """Noise shaped like speech, in shards of 20 utterances."""
    draws, utterances, size = np.random.default_rng(0), [], 0
    (folder / "audio").mkdir()
    for number, seconds in enumerate(speech.durations(num_utterances)):
        path = folder / "audio" / f"{number:05d}.flac"
        path.write_bytes(speech.flac(speech.utterance(float(seconds), number)))
        size += path.stat().st_size
        labels: dict[str, float] = dict(zip(DIMENSIONS, map(float, draws.uniform(0, 1, 3)), strict=True))
        utterances.append(Utterance(key=path.stem, audio=path, split="Train", labels=labels, scale=(1.0, 7.0)))
    build_shard_set(
        utterances, folder / "shards", corpus="bench", release="1", scale=(1.0, 7.0), targets=DIMENSIONS,
        root=folder / "audio", shard_bytes=20 * size // num_utterances,
    )  # fmt: skip


def run_epoch(root: str | Path, cache: Path, window: int, env: Mapping[str, str]) -> dict[str, Any]:
    """One epoch in a process of its own."""
    options = json.dumps({"root": str(root), "cache": str(cache), "window": window})
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.loader.remote", "--epoch", options],
        cwd=ROOT,
        env=environment(env),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def train_epoch(root: str, cache: str, window: int) -> dict[str, Any]:
    """Train a small student on one epoch; seconds, losses, and what was fetched meanwhile."""
    torch.set_num_threads(1)
    seed_everything(0)
    speech_branch = SpeechConfig(**{**SPEECH, "scratch": {**SPEECH["scratch"], **_LARGER}})
    model = build_model(ModelConfig(embedding_dim=32, speech=speech_branch))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    began = time.perf_counter()
    shard_set = open_shard_set(root, cache=Path(cache))
    loader = Loader(
        shard_set,
        ["Train"],
        batch=BatchConfig(global_batch_size=16, micro_batch_size=16),
        data=DataConfig(shards=root, num_workers=1, shuffle_buffer_size=window),
        targets=DIMENSIONS,
        seed=0,
        ranks=Ranks(),
    )
    losses, first_s, waited_first_s = [], 0.0, 0.0
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            if not losses:
                first_s, waited_first_s = time.perf_counter() - began, shard_set.store.statistics.waiting_s
            output = model(batch.audio, batch.num_samples)
            loss = (1 - concordance(output.prediction, batch.labels)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - began
    loader.close()
    shard_set.store.close()
    return {
        "losses": losses,
        "seconds": seconds,
        "first_s": first_s,
        "waited_first_s": waited_first_s,
        **asdict(shard_set.store.statistics),
    }


_LARGER = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "conv_dim": [24, 48]}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured, for people."""
    heads = (
        "an epoch from",
        "seconds",
        "first batch",
        "fetched",
        "fetching",
        "waiting",
        "after it",
        "overlap",
        "faults",
    )
    lines = ["| " + " | ".join(heads) + " |", "|:--" + "|--:" * (len(heads) - 1) + "|"]
    for name, row in rows.items():
        fetching, waiting = row["fetching_s"], row["waiting_s"]
        figures = (
            name,
            f"{row['seconds']:.1f}",
            f"{row['first_s']:.1f} s",
            f"{row['size_bytes'] / 1e6:.0f} MB",
            f"{fetching:.1f} s",
            f"{waiting:.1f} s",
            f"{waiting - row['waited_first_s']:.1f} s",
            f"{1 - waiting / fetching:.0%}" if fetching else "-",
            f"{row.get('faults', '-')}",
        )
        lines.append("| " + " | ".join(figures) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
