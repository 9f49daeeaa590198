"""How many cores ``launch/predict.py`` keeps busy, and how much memory it takes, over few and many recordings.

    python -m tests.bench.inference.predict [--files 1 250 1000 4000] [--hours 0.5 2]

The recordings are made on the spot in a temporary folder: sounds like speech of MSP-like durations as FLAC files, and
one long recording of each of ``--hours``, which is read in windows of 5 s. The model has the shape of the demo's
student, with random weights. Each row is a process of its own, as users start it; its CPU time and largest memory are
what the system counted (``wait4``), and the wall time is from before its start to after its end. "busy" is CPU over
wall time; "read" and "times r." (seconds of audio a second) leave out what one file took: that is starting (imports,
loading the model) for the most part.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from ccts_dist.config import parse_run
from ccts_dist.model import build_model, save_model
from tests.bench.loader import speech
from tests.helpers.processes.launching import ROOT

RUN_FILE = ROOT / "launch" / "runs" / "demo" / "cts.toml"


def make_model(folder: Path) -> Path:
    """A student of the demo's shape, untrained."""
    torch.manual_seed(0)
    config = parse_run(tomllib.loads(RUN_FILE.read_text())).model
    model = build_model(config)
    save_model(folder, model.state_dict(), config, encoders=model.encoder_configs, scale=(1.0, 7.0), extra={})
    return folder


def make_files(folder: Path, count: int) -> list[Path]:
    """So many recordings; seconds of MSP-like spread."""
    folder.mkdir()
    paths = [folder / f"{number:05}.flac" for number in range(count)]
    for number, (path, seconds) in enumerate(zip(paths, speech.durations(count), strict=True)):
        path.write_bytes(speech.flac(speech.utterance(float(seconds), number)))
    return paths


def make_long(path: Path, hours: float) -> Path:
    """One recording of so many hours: a minute of sound over and over."""
    minute = np.concatenate([speech.utterance(10.0, number) for number in range(6)])
    with soundfile.SoundFile(path, "w", speech.SAMPLE_RATE_HZ, 1, subtype="PCM_16") as file:
        for _ in range(round(60 * hours)):
            file.write(minute)
    return path


def measure(model: Path, *args: str | Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and the largest memory in MB of one run of the command."""
    command = [sys.executable, str(ROOT / "launch" / "predict.py"), "--model", str(model), *map(str, args)]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            printed.seek(0)
            sys.exit(f"exit code {process.returncode}\n{printed.read().decode()[-4000:]}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def print_row(what: str, audio_s: float, took: Sequence[float], start: Sequence[float]) -> None:
    """A line of the table."""
    wall, cpu, memory = took
    read_s = (cpu - start[1]) / (wall - start[0]) if wall > start[0] + 1 else float("nan")
    rate = audio_s / (wall - start[0]) if wall > start[0] + 1 else float("nan")
    print(
        f"| {what:>12} | {wall:7.1f} | {cpu:6.1f} | {cpu / wall:5.2f} | {read_s:5.2f} | {rate:8.0f} | {memory:8.0f} |",
        flush=True,
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", type=int, nargs="+", default=[1, 250, 1000, 4000], help="how many recordings (1 250 1000 4000)"
    )
    parser.add_argument("--hours", type=float, nargs="*", default=[0.5, 2.0], help="of one long recording (0.5 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, paths = make_model(folder / "model"), make_files(folder / "files", max(args.files))
        print(f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f} before", flush=True)
        print("|    recordings | wall, s | CPU, s |  busy | read | times r. | peak, MB |")
        print("|--------------:|--------:|-------:|------:|------:|---------:|---------:|")
        measure(model, paths[0])  # so that no row pays for what the disk has not read yet
        start = measure(model, paths[0])
        for count in args.files:
            took = start if count == 1 else measure(model, "--format", "jsonl", *paths[:count])
            print_row(f"{count} files", sum(soundfile.info(path).duration for path in paths[:count]), took, start)
        for hours in args.hours:
            path = make_long(folder / "long.flac", hours)
            took = measure(model, "--format", "jsonl", "--window", "5", path)
            print_row(f"{hours:g} h", 3600 * hours, took, start)


if __name__ == "__main__":
    main()
