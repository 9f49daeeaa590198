"""Make a table of results from nothing: ``python launch/reproduce.py --table demo``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.errors import run_main
from ccts_dist.report.demo import run_demo


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Run every stage that a table needs and is not done yet, then print the table. Kill it at any "
        "time; run again, it goes on.",
        epilog="What it leaves in demo/ (corpus, shards, cache, runs, mlflow.db) is what a corpus of your own leaves.\n"
        "exit codes: 0 done, 1 a stage failed (its log is named), 2 a mistake in what was asked for",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", choices=("demo",), required=True, help="which table")
    parser.add_argument("--utterances", type=int, default=4000, help="how many to speak for the demo (%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    # The run files of the demo name this folder.
    print("\n" + run_demo(Path("demo"), num_utterances=args.utterances, runs=Path("launch/runs/demo")))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
