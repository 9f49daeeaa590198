"""What opening a large shard set and starting anywhere in its plan costs: seconds and memory, by number of shards.

Makes the manifest and the index of a shard set without its audio, then, in a fresh process each, opens it, asks for a
batch deep in a late epoch, and goes on into the next window. Memory is what the process has gained since its imports:
resident at the end, and at its peak.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ccts_dist.loader.sampler import BatchSampler
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards.format.index import IndexPlace, MemberPlaces, ShardRows, rows_to_table
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.schema import INDEX_NAME, MANIFEST_NAME, Manifest, ShardEntry, SplitTotals, shard_name
from ccts_dist.shards.shard_set import open_shard_set

WINDOW = 65_536


def make_set(root: Path, num_utterances: int, num_shards: int) -> None:
    """Manifest and index of a shard set of MSP-like durations, keys and labels."""
    root.mkdir(parents=True)
    draws = np.random.default_rng(0)
    entries, first = [], 0
    with IndexWriter(root / INDEX_NAME) as index:
        for number in range(num_shards):
            last = (number + 1) * num_utterances // num_shards
            rows = _rows(shard_name("Train", number), first, last - first, draws)
            entry = ShardEntry(
                name=rows.shard,
                split="Train",
                num_utterances=len(rows),
                num_samples=int(rows.num_samples.sum()),
                size_bytes=int(rows.num_samples.sum()) * 2,
                sha256=hashlib.sha256(rows.shard.encode()).hexdigest(),
                index=IndexPlace(offset=0, size=0, sha256=""),
            )
            entries.append(replace(entry, index=index.add(rows_to_table(rows))))
            first = last
    manifest = Manifest(
        corpus="large",
        release="1",
        scale=(1.0, 7.0),
        targets=DIMENSIONS,
        splits={"Train": SplitTotals(num_utterances=num_utterances, hours=0.0)},
        shards=tuple(entries),
        index_size_bytes=index.size_bytes,
        index_sha256=index.sha256,
    )
    (root / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def _rows(shard: str, first: int, count: int, draws: np.random.Generator) -> ShardRows:
    samples = (16_000 * np.clip(draws.lognormal(np.log(4.5), 0.5, count), 2.0, 11.0)).astype(np.int64)
    sizes = {"flac": samples, "json": np.full(count, 420, np.int64)}
    return ShardRows(
        shard=shard,
        keys=[f"MSP-PODCAST_{number:08d}_{number % 997:04d}" for number in range(first, first + count)],
        num_samples=samples,
        labels={target: draws.integers(0, 61, count) / 60 for target in DIMENSIONS},
        speakers=[str(number // 50) for number in range(first, first + count)],
        genders=["Female" if number % 2 else "Male" for number in range(first, first + count)],
        categories=["Neutral"] * count,
        members={
            member: MemberPlaces(
                offset=np.cumsum(size + 1_024), size=size, crc32=draws.integers(0, 2**32, count).astype(np.uint32)
            )
            for member, size in sizes.items()
        },
    )


def measure(root: Path, position: float) -> dict[str, float]:
    """One start at ``position`` (0..1) of an epoch, in this process; megabytes and seconds."""
    _, before = _memory()
    began = time.perf_counter()
    shard_set = open_shard_set(root)
    opened = time.perf_counter()
    plan = BatchSampler(
        shard_set, ("Train",), global_batch_size=32, seed=1, shuffle_buffer_size=WINDOW, bucket_batches=32, partitions=1
    )
    first = int(position * (plan.steps_per_epoch - 1))
    assert len(plan.global_batch(7, first)) == 32
    started = time.perf_counter()
    for step in range(first, min(first + 2 * plan.window_steps, plan.steps_per_epoch), 64):
        plan.global_batch(7, step)
    peak, after = _memory()
    return {
        "open_s": opened - began,
        "start_s": started - began,
        "resident_mb": after - before,
        "peak_mb": peak - before,
    }


def _memory() -> tuple[float, float]:
    """Peak and present resident memory in megabytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return float(fields["VmHWM"].split()[0]) / 1000, float(fields["VmRSS"].split()[0]) / 1000


def main() -> None:
    """Make the sets, start at several positions in processes of their own, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--folder", type=Path, help="keep the made sets here, to measure again (default: temporary)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Path(args.one[0]), float(args.one[1]))))
        return
    print("| shards | utterances | open, s | start, s (largest) | resident, MB | peak, MB |")
    print("|-------:|-----------:|--------:|-------------------:|-------------:|---------:|")
    with tempfile.TemporaryDirectory() as temporary:
        for num_shards in args.shards:
            root = (args.folder or Path(temporary)) / f"{args.utterances}-{num_shards}"
            if not root.exists():
                make_set(root, args.utterances, num_shards)
            runs = []
            for position in (0.0, 0.3, 0.5, 0.77, 1.0):
                command = [sys.executable, __file__, "--one", str(root), str(position)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            slowest = max(run["start_s"] for run in runs)
            print(
                f"| {num_shards:,} | {args.utterances:,} | {middle['open_s']:.2f} | {middle['start_s']:.2f} "
                f"({slowest:.2f}) | {middle['resident_mb']:.0f} | {middle['peak_mb']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
