"""What options cost a run that uses none: a step's time at an earlier revision and now, the same run file for both.

    python -m tests.bench.options               15 turns, each a training of 80 steps per revision and case
    python -m tests.bench.options --quick       2 turns of 20 steps
    python -m tests.bench.options --base HEAD   the present commit against itself: what the machine alone does

The earlier revision (by default the last one before the options) is exported into a temporary folder and runs in the
same environment, with the same corpus, cache and clock. Its own run files name no option that came later, so that all
of those stand at their off values, which are their defaults. Every training is a process of its own on one core; the
revisions take turns, every other turn the other way round, and a ratio is that of one turn's two medians.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import tomli_w

from tests.bench.demo_student import finish, prepare, start, work_folder
from tests.launching import ROOT

BASE = "a4dc43d"
"""The last revision before the options."""

SCRIPT = ROOT / "tests" / "bench" / "under_launcher" / "train_timed.py"
UTTERANCES = 16
TARGET = 0.02


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of step."""

    run_file: str
    passes: int


CASES = {
    "student": Case("speech.toml", 1),
    "distilled": Case("cts.toml", 1),
    "distilled-4-passes": Case("cts.toml", 4),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One training's figures."""

    step_s: float
    """Median over its steps."""

    cpu_s: float


def main() -> None:
    """Measure in turns, and print the table."""
    options = _options()
    data = options.work / f"{options.utterances}"
    core = sorted(os.sched_getaffinity(0))[:1]
    prepare(data, options.utterances)
    cases = {name: CASES[name] for name in options.cases}
    turns: dict[str, dict[str, list[Turn]]] = {name: {"before": [], "now": []} for name in cases}
    with tempfile.TemporaryDirectory() as place:
        trees = {"before": _export(options.base, Path(place) / "before"), "now": ROOT}
        for turn in range(options.turns):
            for name, case in cases.items():
                for when in list(trees)[:: 1 if turn % 2 == 0 else -1]:
                    config = _write_run(Path(place) / "run", trees["before"], case, data, options.steps)
                    turns[name][when].append(_measure(config, trees[when], core, options.steps))
                print(f"turn {turn + 1}: {name}: {_ratios(turns[name], 'step_s')[-1]:.3f}", file=sys.stderr)
    print(_table(turns, options.base))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 turns of 20 steps")
    parser.add_argument("--base", default=BASE, metavar="REV", help="the earlier revision (%(default)s)")
    parser.add_argument("--turns", type=int, metavar="N", help="default 15")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training; default 80")
    parser.add_argument("--utterances", type=int, default=400, metavar="N", help="of the corpus (%(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--work", type=Path, default=work_folder(), metavar="DIR", help="the corpus")
    options = parser.parse_args()
    options.turns = options.turns or (2 if options.quick else 15)
    options.steps = options.steps or (20 if options.quick else 80)
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
    tree = tomllib.loads((before / "launch" / "runs" / "demo" / case.run_file).read_text()) | {"output": str(output)}
    own: dict[str, dict[str, Any]] = {
        "data": {"shards": str(data / "shards"), "test_splits": []},
        "batch": {"global_utterances": UTTERANCES, "micro_utterances": UTTERANCES // case.passes},
        "train": {"epochs": 1_000, "max_steps": steps},
        "tracking": {"kind": "none", "register": ""},
    }
    if "teacher" in tree["data"]:
        own["data"]["teacher"] = str(data / "cache")
    for name, values in own.items():
        tree[name] = {**tree.get(name, {}), **values}
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.toml"
    config.write_text(tomli_w.dumps(tree))
    return config


def _measure(config: Path, tree: Path, core: list[int], steps: int) -> Turn:
    warm_up = str(max(2, steps // 10))
    process = start(1, core, str(SCRIPT), "--config", str(config), "--warm-up", warm_up, tree=tree)
    finish(process, timeout_s=1800)
    told = json.loads((config.parent / "output" / "times-0.json").read_text())
    if not Path(told["library"]).is_relative_to(tree):
        sys.exit(f"{told['library']} was measured, and not {tree}")
    return Turn(median(told["steps"]), median(told["cpu"]))


def _ratios(turns: dict[str, list[Turn]], figure: str) -> list[float]:
    """Now over before, turn by turn."""
    pairs = zip(turns["now"], turns["before"], strict=True)
    return [getattr(now, figure) / getattr(before, figure) for now, before in pairs]


def _table(turns: dict[str, dict[str, list[Turn]]], base: str) -> str:
    num_turns = len(next(iter(turns.values()))["now"])
    lines = [
        f"{base} before; medians of {num_turns} turns; ratios now over before, in brackets the middle half and the "
        f"range; load now {os.getloadavg()[0]:.1f}.",
        "",
        f"| step of | before, ms | now, ms | ratio | ratio of CPU time | within {TARGET:.0%} |",
        "|:--|--:|--:|--:|--:|:--|",
    ]
    for name, measured in turns.items():
        before, now = (1000 * median(turn.step_s for turn in measured[when]) for when in ("before", "now"))
        steps, cpu = _ratios(measured, "step_s"), _ratios(measured, "cpu_s")
        within = "yes" if median(steps) <= 1 + TARGET else "no"
        lines.append(f"| {name} | {before:.1f} | {now:.1f} | {_spread(steps)} | {_spread(cpu)} | {within} |")
    return "\n".join(lines)


def _spread(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return f"{median(ratios):.3f} ({low:.3f} to {high:.3f}; {min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
