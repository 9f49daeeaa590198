"""What a training step costs beyond forward, backward and optimizer, and what of it is the exact CCC.

    python -m tests.bench.train.step            three launches, in each 20 turns of 10 steps for every way
    python -m tests.bench.train.step --quick    3 turns of 4 steps
    python -m tests.bench.train.step --cases 2x2    one launch alone

On the demo's cT/S student, ZeRO-2, the same batches for every way of taking a step. The ways take turns within one
process (per rank), and a ratio is the median of the turns' ratios.

* one rank on one core: our step over bare torch (forward, autograd's loss, backward, clipping, Adam);
* two ranks, one pass: our step over the same engine with a plain loss of each rank's own rows, which is no global CCC
  and needs no sums over ranks: what the exact CCC costs. Also the loss alone, by itself: its seconds (all-reduce
  included, ranks in step) beyond the plain loss's, over the seconds of a step;
* two ranks, two passes: the same, where the exact CCC takes a second round of forward passes, against CCC per
  micro-batch, which does not.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.train.demo_student import finish, prepare, start, work_folder, write_run

SCRIPT = "tests/bench/train/under_launcher/time_steps.py"
MICRO = 16
CASES = {"1x1": (1, 1), "2x1": (2, 1), "2x2": (2, 2)}
"""Ranks x micro-batches."""


def main() -> None:
    """Measure and print."""
    options = _options()
    folder = options.work / f"{options.utterances}"
    prepare(folder, options.utterances)
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for case in options.cases.split(","):
        num_ranks, num_micro_batches = CASES[case]
        rows.append((case, _measure(folder, num_ranks, num_micro_batches, cores[:num_ranks], options)))
        print(f"{case}: measured", file=sys.stderr)
    print(_table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns of 4 steps")
    parser.add_argument("--turns", type=int, metavar="N", help="of each way; default 20")
    parser.add_argument("--steps", type=int, metavar="N", help="of a turn; default 10")
    parser.add_argument("--utterances", type=int, default=400, metavar="N", help="of the corpus (%(default)s)")
    parser.add_argument("--cases", default=",".join(CASES), help="ranks x micro-batches, with commas (%(default)s)")
    parser.add_argument("--work", type=Path, default=work_folder(), metavar="DIR", help="the corpus")
    options = parser.parse_args()
    if unknown := set(options.cases.split(",")) - CASES.keys():
        parser.error(f"--cases: no case {sorted(unknown)[0]!r}; there are {', '.join(CASES)}")
    options.turns = options.turns or (3 if options.quick else 20)
    options.steps = options.steps or (4 if options.quick else 10)
    return options


def _measure(
    folder: Path, num_ranks: int, num_micro_batches: int, cores: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        config = write_run(
            Path(place) / "run.toml", folder, Path(place) / "run",
            batch={"global_batch_size": MICRO * num_ranks, "micro_batch_size": MICRO // num_micro_batches},
        )  # fmt: skip
        out = Path(place) / "seconds.json"
        process = start(num_ranks, cores, SCRIPT, str(config), str(options.turns), str(options.steps), str(out))
        finish(process, timeout_s=1800)
        return json.loads(out.read_text())


def _table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    lines = [
        f"Medians of {len(rows[0][1]['seconds']['global CCC'])} turns (range of the ratios); load now "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "| ranks x micro-batches | our step, ms | over | ratio |",
        "|:--|--:|:--|--:|",
    ]
    for name, reported in rows:
        ours = reported["seconds"]["global CCC"]
        step_ms = 1000 * median(ours) / reported["steps"]
        for other, seconds in reported["seconds"].items():
            if other != "global CCC":
                ratios = [mine / theirs for mine, theirs in zip(ours, seconds, strict=True)]
                spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                lines.append(f"| {name} | {step_ms:.1f} | {other} | {spread} |")
    lines.append("")
    for name, reported in rows:
        exact, plain = 1000 * reported["loss"]["exact"], 1000 * reported["loss"]["plain"]
        step_ms = 1000 * median(reported["seconds"]["global CCC"]) / reported["steps"]
        lines.append(
            f"{name}: the CCC alone, for one pass: exact {exact:.2f} ms, plain {plain:.2f} ms; more by "
            f"{(exact - plain) / step_ms:+.2%} of a step"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
