"""Send the metrics of a run that its tracking server lacks: ``python launch/sync.py RUN``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Send the metrics and files of a run that its tracking server lacks. Training keeps them in its "
        "run folder until the server has them, and sends them while it runs. This command sends the rest after its end "
        "or a kill: in order, nothing twice. It may be interrupted, and run again.",
        epilog="examples:\n"
        "  python launch/sync.py runs/student\n"
        "  python launch/sync.py runs/* --tracking-uri http://mlflow:5000\n"
        "exit codes: 0 the server has everything; 1 the server is unavailable, or refused something (named in a\n"
        "  file next to the events); 2 a mistake: no tracked run in the folder, or a training is under way in it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder: `output_dir` of a run file")
    parser.add_argument(
        "--tracking-uri",
        default="",
        help="MLflow server or sqlite:///FILE; without it MLFLOW_TRACKING_URI, then the server of the run",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.tracking.sync import sync

    num_refused = 0
    for run in args.runs:
        done = sync(run, uri=args.tracking_uri, report=print)
        num_refused += done.num_refused
        refused = f", {done.num_refused:,} refused" if done.num_refused else ""
        print(f"{run}: {done.num_sent:,} sent{refused}; nothing waits")
    return 1 if num_refused else 0


if __name__ == "__main__":
    start("sync")
