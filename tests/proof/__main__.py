"""Proof of no change: ``python -m tests.proof BASE``. See ``--help``."""

import argparse
import math
import signal
import statistics
import sys
from types import FrameType

from tests.helpers.processes.launching import ROOT
from tests.proof.checkout import Checkout, checkouts, git
from tests.proof.compare import (
    Comparison,
    Difference,
    ProofError,
    compare_files,
    compare_histories,
    compare_weights,
    read_history,
)
from tests.proof.runs import (
    CACHE,
    RUNS,
    SHARDS,
    SOURCES,
    STUDENTS,
    TEACHER,
    Trained,
    cache_teacher,
    code_digest,
    make_shards,
    train,
)

DESCRIPTION = """Train the demo's run files for some steps at two revisions on this machine, and compare losses,
gradient norms, key checksums, the teacher cache and the final weights to the last digit. BASE is checked out into a
temporary folder; the other revision is the working tree as it is. Each makes shards and teacher with its own code, from
the same seeds."""

EPILOG = """examples:
  make proof BASE=main
  python -m tests.proof HEAD --only text speech
The last line is "equal", or "different" with run, step, figure and both values. The time per step is a ratio of
medians; it is printed, and nothing depends on it.
exit codes: 0 equal, 1 different, 2 no comparison (no such revision, a command that failed)"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", help="a revision that git knows")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, help="run files (default: all five)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each run (%(default)s)")
    parser.add_argument("--utterances", type=int, default=600, help="size of the corpus (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, _leave)
    try:
        return prove(args)
    except ProofError as error:
        print(f"proof: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("proof: stopped by Ctrl-C; the temporary folder is removed", file=sys.stderr)
        return 130


def prove(args: argparse.Namespace) -> int:
    """Run and compare; 0 for equal, 1 for different."""
    before = code_digest(ROOT, SOURCES)
    with checkouts(args.base) as (base, head):
        report(f"BASE is {_named(base)}; HEAD is the working tree, {_named(head)}{_changed()}")
        difference, ratios = compare_all(base, head, args)
    if code_digest(ROOT, SOURCES) != before:
        raise ProofError("sources of the working tree were changed meanwhile. Run it again, and leave them alone.")
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        report(f"time per step: {mean:.3f} of BASE's ({min(ratios):.3f} to {max(ratios):.3f})")
    print("equal" if difference is None else difference.words(), flush=True)
    return 0 if difference is None else 1


def compare_all(base: Checkout, head: Checkout, args: argparse.Namespace) -> tuple[Difference | None, list[float]]:
    """The first difference, and the ratio of times per step of each run up to there."""
    for checkout in (base, head):
        is_new = make_shards(checkout, args.utterances)
        report(f"shards: {'made' if is_new else 'kept from before'} for {checkout.name}")
    difference = compare_files("shards", base.folder / SHARDS, head.folder / SHARDS, "*.tar")
    ratios: list[float] = []
    turn = [base, head]
    for name in wanted(args.only):
        if difference is not None:
            break
        turn.reverse()  # whoever is second finds files and frequencies as the first has left them
        trained = {checkout.name: train(checkout, name, args.steps) for checkout in turn}
        difference = compare_run(name, trained["BASE"], trained["HEAD"], args.steps, ratios)
        if difference is None and name == TEACHER and set(args.only) & set(STUDENTS):
            for checkout in turn:
                cache_teacher(checkout)
            difference = compare_files("teacher cache", base.folder / CACHE, head.folder / CACHE, "*.tar")
            report(f"teacher cache: {'equal' if difference is None else 'different'}")
    return difference, ratios


def compare_run(name: str, base: Trained, head: Trained, num_steps: int, ratios: list[float]) -> Difference | None:
    """Compare one run's histories and weights, and report of it; the ratio of times per step is added to ``ratios``."""
    histories = read_history(base.folder), read_history(head.folder)
    if len(histories[0]) != num_steps:
        raise ProofError(
            f"run {name}: BASE took {len(histories[0])} steps, must be {num_steps}. Give more --utterances."
        )
    compared: Comparison = compare_histories(name, *histories)
    difference = compared.difference
    if difference is None:
        difference = compare_weights(name, num_steps, base.folder / "last", head.folder / "last")
    times = ""
    if base.seconds_per_step and head.seconds_per_step:
        ratios.append(head.seconds_per_step / base.seconds_per_step)
        times = f"; {1e3 * head.seconds_per_step:.1f} ms per step, {1e3 * base.seconds_per_step:.1f} at BASE: "
        times += f"{ratios[-1]:.3f}"
    notes = f"; not compared, since only one has them: {', '.join(compared.unpaired)}" if compared.unpaired else ""
    report(f"{name}: {num_steps} steps and weights {'equal' if difference is None else 'different'}{times}{notes}")
    return difference


def wanted(only: list[str] | tuple[str, ...]) -> list[str]:
    """The runs in order; a student brings its teacher."""
    return [name for name in RUNS if name in only or (name == TEACHER and set(only) & set(STUDENTS))]


def report(line: str) -> None:
    """A line that is there at once, also in a pipe."""
    print(line, flush=True)


def _named(checkout: Checkout) -> str:
    return git("-C", str(checkout.tree), "log", "-1", "--format=%h (%s)", what=checkout.name)


def _changed() -> str:
    changes = git("status", "--porcelain", what="HEAD").splitlines()
    return f" with {len(changes)} changed files" if changes else ""


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # by way of what removes the temporary folder


if __name__ == "__main__":
    raise SystemExit(main())
