"""What options cost a run that uses none: a step's time at an earlier revision and now, the same run file for both.

    python -m tests.bench.train.options               15 turns, each of 40 steps per revision and case
    python -m tests.bench.train.options --quick       2 turns of 20 steps
    python -m tests.bench.train.options --base HEAD   the present commit against itself: what the machine alone does

The earlier revision (by default the last one before the options) is exported into a temporary folder and runs in the
same environment, with the same corpus, cache and clock. Its own run files name no option that came later, so that all
of those stand at their off values, which are their defaults.

A turn is two trainings, one of each revision, on one core. They go step by step: one waits while the other takes a
step, the first of a pair is now the one and now the other, and all recordings are of one length, so that a step is the
same work whichever utterances it holds. What a shared machine does to a second, it does to both. A turn's figure is the
median of its pairs' ratios; two processes differ by a few per cent for as long as they live, so there are many turns,
and their median counts.
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import tomli_w

from tests.bench.train.demo_student import finish, prepare, start, work_folder
from tests.helpers.processes.launching import ROOT

BASE = "a4dc43d"
"""The last revision before the options."""

SCRIPT = ROOT / "tests/bench/train/under_launcher/train_timed.py"
UTTERANCES = 16
SECONDS = 1.5
TARGET = 0.02
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of step."""

    run_file: str
    num_micro_batches: int


CASES = {
    "student": Case("speech.toml", 1),
    "distilled": Case("cts.toml", 1),
    "distilled-4-micro-batches": Case("cts.toml", 4),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A step before and the same step now."""

    before: tuple[float, float]
    """Wall and CPU seconds."""

    now: tuple[float, float]

    def ratio(self, figure: int) -> float:
        """Now over before: of wall seconds (0) or of CPU seconds (1)."""
        return self.now[figure] / self.before[figure]


def main() -> None:
    """Measure in turns, and print the table."""
    options = _options()
    data = options.work / f"{options.utterances}-of-{SECONDS}s"
    prepare(data, options.utterances, seconds=SECONDS)
    cases = {name: CASES[name] for name in options.cases}
    turns: dict[str, list[list[Pair]]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as place:
        trees = {"before": _export(options.base, Path(place) / "before"), "now": ROOT}
        for turn in range(options.turns):
            for name, case in cases.items():
                configs = {
                    when: _write_run(Path(place) / f"run-{when}", trees["before"], case, data, options.steps)
                    for when in trees
                }
                turns[name].append(_take_turns(configs, trees, options.steps, Path(place) / "socket"))
                print(f"turn {turn + 1}: {name}: {_middle(turns[name][-1], 0):.3f}", file=sys.stderr)
    print(_table(turns, options.base))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns of 20 steps")
    parser.add_argument("--base", default=BASE, metavar="REV", help="the earlier revision (%(default)s)")
    parser.add_argument("--turns", type=int, metavar="N", help="default 15")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training; default 40")
    parser.add_argument("--utterances", type=int, default=400, metavar="N", help="of the corpus (%(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--work", type=Path, default=work_folder(), metavar="DIR", help="the corpus")
    options = parser.parse_args()
    options.turns = options.turns or (2 if options.quick else 15)
    options.steps = options.steps or (20 if options.quick else 40)
    return options


def _export(revision: str, folder: Path) -> Path:
    """The files of a revision; no worktree, which a killed bench would leave behind."""
    packed = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode != 0:
        sys.exit(f"--base {revision}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _write_run(folder: Path, before: Path, case: Case, data: Path, steps: int) -> Path:
    """The earlier revision's run file with the bench's data, and not one key more than it knows."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    tree = tomllib.loads((before / "launch" / "runs" / "demo" / case.run_file).read_text()) | {
        "output_dir": str(output)
    }
    own: dict[str, dict[str, Any]] = {
        "data": {"shards": str(data / "shards"), "test_splits": []},
        "batch": {"global_batch_size": UTTERANCES, "micro_batch_size": UTTERANCES // case.num_micro_batches},
        "train": {"epochs": 1_000, "max_steps": steps},
        "tracking": {"backend": "none", "registered_model_name": ""},
    }
    if "teacher" in tree["data"]:
        own["data"]["teacher_cache"] = str(data / "cache")
    for name, values in own.items():
        tree[name] = {**tree.get(name, {}), **values}
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.toml"
    config.write_text(tomli_w.dumps(tree))
    return config


def _take_turns(configs: dict[str, Path], trees: dict[str, Path], steps: int, place: Path) -> list[Pair]:
    """Two trainings, step by step; the pairs of steps after warming up, without those that follow a validation."""
    core = sorted(os.sched_getaffinity(0))[:1]
    reported: dict[str, list[tuple[float, float] | None]] = {when: [] for when in trees}
    processes, lines = {}, {}
    for when, tree in trees.items():
        with _listening(place) as listener:
            words = ("--config", str(configs[when]), "--warm-up", str(max(2, steps // 10)), "--turns", str(place))
            processes[when] = start(1, core, str(SCRIPT), *words, tree=tree)
            lines[when] = listener.accept()[0].makefile("rw")
        lines[when].readline()  # of the first step
    for step in range(1, steps):
        for when in list(trees)[:: 1 if step % 2 else -1]:
            print("go", file=lines[when], flush=True)
            line = lines[when].readline()
            if not line:  # it has ended; how, it states itself
                finish(processes[when], timeout_s=PATIENCE_S)
            reported[when].append(json.loads(line))
    for when, tree in trees.items():
        print("go", file=lines[when], flush=True)
        finish(processes[when], timeout_s=PATIENCE_S)
        library = json.loads((configs[when].parent / "output" / "times-0.json").read_text())["library"]
        if not Path(library).is_relative_to(tree):
            sys.exit(f"{library} was measured, and not {tree}")
    return [Pair(*steps) for steps in zip(reported["before"], reported["now"], strict=True) if None not in steps]


@contextmanager
def _listening(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        listener.settimeout(PATIENCE_S)
        yield listener
    place.unlink()


def _middle(pairs: list[Pair], figure: int) -> float:
    return median(pair.ratio(figure) for pair in pairs)


def _table(turns: dict[str, list[list[Pair]]], base: str) -> str:
    num_turns = len(next(iter(turns.values())))
    lines = [
        f"{base} before; medians of {num_turns} turns; ratios now over before, in brackets the middle half and the "
        f"range; load now {os.getloadavg()[0]:.1f}.",
        "",
        f"| step of | before, ms | now, ms | ratio | ratio of CPU time | within {TARGET:.0%} |",
        "|:--|--:|--:|--:|--:|:--|",
    ]
    for name, measured in turns.items():
        pairs = [pair for turn in measured for pair in turn]
        before, now = 1000 * median(pair.before[0] for pair in pairs), 1000 * median(pair.now[0] for pair in pairs)
        steps, cpu = ([_middle(turn, figure) for turn in measured] for figure in (0, 1))
        within = "yes" if median(steps) <= 1 + TARGET else "no"
        lines.append(f"| {name} | {before:.1f} | {now:.1f} | {_spread(steps)} | {_spread(cpu)} | {within} |")
    return "\n".join(lines)


def _spread(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return f"{median(ratios):.3f} ({low:.3f} to {high:.3f}; {min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
