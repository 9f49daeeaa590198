"""Find the step at which two runs diverge: ``python launch/compare.py RUN_A RUN_B``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Compare two runs: settings that differ, whether each step had the same utterances, at which step "
        "each metric differs by more than the tolerance, the largest difference, and the final scores. Runs may be "
        "under way and of different length: the steps that both have are compared. The exit code is of one metric.",
        epilog="examples:\n"
        "  python launch/compare.py runs/one-rank runs/two-ranks\n"
        "  python launch/compare.py runs/a runs/b --key train/grad_norm --tolerance 1e-3\n"
        "  python launch/compare.py runs/a runs/b --plot curves.png\n"
        "  python launch/compare.py runs/a runs:/0123456789abcdef --tracking-uri http://mlflow:5000\n"
        "exit codes: 0 the metric agrees within the tolerance in all common steps, 1 it differs, 2 a mistake: no such\n"
        "folder, no history in it, no such metric",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs=2, metavar="RUN", help="a run folder (with history.jsonl in it), or runs:/ID of a tracked run"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, metavar="T", help="largest difference that agrees (%(default)s)"
    )
    parser.add_argument("--key", default="train/loss", metavar="METRIC", help="metric of the exit code (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw both curves, as .png, .svg or .pdf")
    parser.add_argument(
        "--tracking-uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.report.comparison import compare_runs
        from ccts_dist.report.comparison_text import comparison_in_words
        from ccts_dist.report.curves import draw_curves
        from ccts_dist.report.recorded import read_run_of
        from ccts_dist.shards.plots import check_picture

    if args.plot is not None:
        check_picture(args.plot)
    a, b = (read_run_of(run, tracking_uri=args.tracking_uri) for run in args.runs)
    comparison = compare_runs(a, b, key=args.key, tolerance=args.tolerance)
    print(comparison_in_words(comparison))
    if args.plot is not None:
        draw_curves(args.plot, a, b, comparison)
    return 0 if comparison.agrees else 1


if __name__ == "__main__":
    start("compare")
