"""How much faster two processes build shards than one: the same corpus, the same bytes, turn by turn in one run.

    python tests/bench/shards/build.py [--hours 4] [--repeats 5]

The corpus is made on the spot in a temporary folder: voiced sounds of 2 to 11 s in wave files, which FLAC brings to
about half their size, as it does speech. Prints every repeat and the medians; one process is one process with one
thread. Several processes start within the time that is measured. What two cores could give at most is measured beside
it: two builds of one process each, in processes that know nothing of each other.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import soundfile

from ccts_dist.errors import ShardError
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set

FILES = 400
"""Different audio files; utterances beyond take them again, under keys of their own."""


def write_voice(path: Path, number: int) -> float:
    """A wave file of a few seconds: harmonics of a wandering pitch, loud and soft, with breath; returns its length."""
    source = np.random.default_rng(number)
    num_samples = int(16_000 * source.uniform(2, 11))
    steps = num_samples // 1600 + 2
    pitch = np.interp(np.arange(num_samples) / 1600, np.arange(steps), source.uniform(90, 250, steps))
    loudness = np.interp(np.arange(num_samples) / 1600, np.arange(steps), source.uniform(0, 0.15, steps))
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 9)) + source.normal(0, 0.1, num_samples)
    soundfile.write(path, np.clip(loudness * voice, -1, 1), 16_000, subtype="PCM_16")
    return num_samples / 16_000


def make_corpus(folder: Path, hours: float) -> list[Utterance]:
    """Utterances of so many hours in all."""
    files = [folder / f"{number}.wav" for number in range(FILES)]
    lengths = [write_voice(path, number) for number, path in enumerate(files)]
    utterances, left = [], hours * 3600
    while left > 0:
        number = len(utterances)
        labels = dict.fromkeys(DIMENSIONS, number % 10 / 10)
        utterances.append(
            Utterance(key=f"{number:06d}", audio=files[number % FILES], split="Train", labels=labels, scale=(0.0, 1.0))
        )
        left -= lengths[number % FILES]
    return utterances


def build_once(utterances: list[Utterance], out: Path, num_processes: int, shard_bytes: float) -> tuple[float, str]:
    """Seconds for one build, and the digest of what was built."""
    began = time.perf_counter()
    summary = build_shard_set(
        utterances,
        out,
        corpus="bench",
        release="1",
        scale=(0.0, 1.0),
        targets=DIMENSIONS,
        shard_bytes=shard_bytes,
        num_processes=num_processes,
    )
    return time.perf_counter() - began, summary.digest


def _build_at(
    utterances: list[Utterance], out: Path, shard_bytes: float, ready: Barrier, ends: "multiprocessing.Queue[float]"
) -> None:
    ready.wait()
    ends.put(build_once(utterances, out, 1, shard_bytes)[0])


def build_two_apart(utterances: list[Utterance], folder: Path, shard_bytes: float) -> float:
    """Seconds that each of two builds takes beside the other one: the longer time."""
    spawn = multiprocessing.get_context("spawn")
    ready, ends = spawn.Barrier(2), spawn.Queue()
    both = [
        spawn.Process(target=_build_at, args=(utterances, folder / f"{number}", shard_bytes, ready, ends))
        for number in range(2)
    ]
    for one in both:
        one.start()
    seconds = max(ends.get() for _ in both)
    for one in both:
        one.join()
    return seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=4.0, help="of audio (default: 4)")
    parser.add_argument("--repeats", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--shard-mb", type=float, default=32.0, help="size of a shard (default: 32)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        utterances = make_corpus(Path(folder), args.hours)
        print(f"{len(utterances)} utterances, {args.hours:g} h; {len(os.sched_getaffinity(0))} cores")
        print(f"{'repeat':>8}{'one, s':>10}{'two, s':>10}{'ratio':>8}{'at most':>10}{'of it':>8}")
        times: dict[int, list[float]] = {1: [], 2: []}
        most = []
        digests = set()
        for repeat in range(args.repeats):
            for num_processes in (1, 2) if repeat % 2 else (2, 1):
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    seconds, digest = build_once(utterances, Path(out) / "s", num_processes, 1e6 * args.shard_mb)
                times[num_processes].append(seconds)
                digests.add(digest)
            with tempfile.TemporaryDirectory(dir=folder) as out:
                apart = build_two_apart(utterances, Path(out), 1e6 * args.shard_mb)
            one, two = times[1][-1], times[2][-1]
            most.append(2 * one / apart)
            print(_line(str(repeat + 1), one, two, one / two, most[-1]), flush=True)
        if len(digests) != 1:
            raise ShardError(f"{len(digests)} different shard sets were built of one corpus")
        one, two = statistics.median(times[1]), statistics.median(times[2])
        ratio = statistics.median(first / second for first, second in zip(times[1], times[2], strict=True))
        print(_line("median", one, two, ratio, statistics.median(most)))
        print(
            f"seconds of audio a second: {3600 * args.hours / one:.0f} with one, {3600 * args.hours / two:.0f} with two"
        )


def _line(name: str, one: float, two: float, ratio: float, most: float) -> str:
    return f"{name:>8}{one:>10.2f}{two:>10.2f}{ratio:>8.2f}{most:>10.2f}{ratio / most:>8.2f}"


if __name__ == "__main__":
    main()
