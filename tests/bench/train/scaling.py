"""Weak scaling: two ranks on two cores against one rank pinned to one core, on the demo's student.

    python -m tests.bench.train.scaling            5 turns, three trainings of 100 steps each
    python -m tests.bench.train.scaling --quick    1 turn, trainings of 30 steps

Each rank has the same micro-batch (16 utterances), so that two ranks do twice the work of one in a step; they reach
``rate of two / (2 x rate of one)`` of what twice the hardware could give. Each measurement is a training of its own
under the DeepSpeed launcher (ZeRO-2, the run file of the demo's cT/S student, a corpus spoken for the purpose), of
which only steps are counted: no start, no validation. A third entrant is two single ranks side by side, one on each
core, that know nothing of each other: what the machine itself loses when both of its cores are busy.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from ccts_dist.loader.micro_batches import split_global_batch
from ccts_dist.loader.sampler import BatchSampler
from ccts_dist.shards.shard_set import ShardSet
from tests.bench.train.demo_student import finish, prepare, start, work_folder, write_run

ONE, TWO, ASIDE = "one rank, one core", "two ranks, two cores", "two single ranks side by side"
MICRO = 16
SCRIPT = "tests/bench/train/under_launcher/train_timed.py"


def main() -> None:
    """Measure in turns, and print the table, the ratios, and where the time went."""
    options = _options()
    folder = options.work / f"{options.utterances}"
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("this bench needs two cores")
    shard_set = prepare(folder, options.utterances)
    turns: dict[str, list[list[dict[str, Any]]]] = {ONE: [], TWO: [], ASIDE: []}
    for turn in range(options.repeats):
        # Every other turn backwards, and the single rank on the other core.
        for name in [ONE, TWO, ASIDE][:: 1 if turn % 2 == 0 else -1]:
            turns[name].append(_measure(name, folder, cores[:: 1 if turn % 2 == 0 else -1], options))
            print(f"turn {turn + 1}: {name}: {_rate(name, turns[name][-1]):.1f} utterances/s", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(turns))
    print(_table(turns))
    print(_parts(turns))
    print(f"\nlargest part of a step over the mean part, two ranks: {_imbalance(shard_set, options.micro):.3f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 turn of 30 steps on 400 utterances")
    parser.add_argument("--repeats", type=int, metavar="N", help="turns; default 5")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training; default 100")
    parser.add_argument("--utterances", type=int, metavar="N", help="of the corpus; default 1600")
    parser.add_argument("--micro", type=int, default=MICRO, help="batch.micro_batch_size, at least 16 (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single figure")
    parser.add_argument("--work", type=Path, default=work_folder(), metavar="DIR", help="corpus and runs")
    options = parser.parse_args()
    options.repeats = options.repeats or (1 if options.quick else 5)
    options.steps = options.steps or (30 if options.quick else 100)
    options.utterances = options.utterances or (400 if options.quick else 1600)
    return options


def _measure(name: str, folder: Path, cores: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The times of every rank of one entrant; of both trainings for the pair."""
    trainings = {
        ONE: [(1, cores[:1])],
        TWO: [(2, cores)],
        ASIDE: [(1, cores[:1]), (1, cores[1:])],
    }[name]
    processes, outputs = [], []
    for number, (num_ranks, own) in enumerate(trainings):
        output = folder / "runs" / str(number)
        shutil.rmtree(output, ignore_errors=True)
        config = write_run(
            folder / "runs" / f"{number}.toml", folder, output,
            batch={"global_batch_size": MICRO * num_ranks, "micro_batch_size": options.micro},
            train={"epochs": 1_000, "max_steps": options.steps},
        )  # fmt: skip
        warm_up = str(max(2, options.steps // 10))
        processes.append(start(num_ranks, own, SCRIPT, "--config", str(config), "--warm-up", warm_up))
        outputs.append((output, num_ranks))
    for process in processes:
        finish(process, timeout_s=1800)
    return [
        json.loads((output / f"times-{rank}.json").read_text())
        for output, num_ranks in outputs
        for rank in range(num_ranks)
    ]


def _rate(name: str, run: list[dict[str, Any]]) -> float:
    """Utterances per second of all ranks together."""
    rates = [MICRO * len(one["steps"]) / sum(one["steps"]) for one in run]
    return rates[0] * 2 if name == TWO else sum(rates)


def _table(turns: dict[str, list[list[dict[str, Any]]]]) -> str:
    single = [_rate(ONE, run) for run in turns[ONE]]
    lines = [
        f"Median of {len(single)} turns (range); load now {os.getloadavg()[0]:.1f}.",
        "",
        "| | utterances/s | of twice one rank | step, ms | CPU of a rank, ms | threads |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name, runs in turns.items():
        rates = [_rate(name, run) for run in runs]
        ratios = [rate / (2 * one) for rate, one in zip(rates, single, strict=True)]
        steps = [1000 * median(one["steps"]) for run in runs for one in run]
        cpu = [1000 * median(one["cpu"]) for run in runs for one in run]
        lines.append(
            f"| {name} | {_spread(rates, '.1f')} | {_spread(ratios, '.3f')} | {median(steps):.0f} | {median(cpu):.0f} "
            f"| {runs[0][0]['threads']} |"
        )
    return "\n".join(lines)


def _parts(turns: dict[str, list[list[dict[str, Any]]]]) -> str:
    """Where a rank's time goes, in ms a step; medians over turns and ranks."""
    names = list(dict.fromkeys(part for runs in turns.values() for run in runs for part in run[0]["parts"]))
    lines = ["", "| ms a step | " + " | ".join(turns) + " |", "|:--|" + "--:|" * len(turns)]
    for part in names:
        cells = [
            f"{median(1000 * one['parts'].get(part, 0.0) / len(one['steps']) for run in runs for one in run):.1f}"
            for runs in turns.values()
        ]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _imbalance(shard_set: ShardSet, micro: int) -> float:
    """Mean over an epoch's steps: the largest part's padded audio over the mean part's; what a rank waits for."""
    plan = BatchSampler(
        shard_set, ("Train",), global_batch_size=2 * MICRO, seed=17, shuffle_buffer_size=65_536, bucket_batches=32,
        partitions=1,
    )  # fmt: skip
    ratios = []
    for step in range(plan.steps_per_epoch):
        ((one, two),) = split_global_batch(plan.global_batch(0, step), 2, 1, micro)
        sizes = (one.padded_samples, two.padded_samples)
        ratios.append(max(sizes) / (sum(sizes) / 2))
    return sum(ratios) / len(ratios)


def _spread(values: list[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
