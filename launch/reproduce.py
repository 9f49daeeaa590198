"""Make a table of results from nothing: ``python launch/reproduce.py --table demo``. See ``--help``."""

import argparse
import shlex
from pathlib import Path

from ccts_dist.errors import ConfigError, run_main
from ccts_dist.report.demo import run_demo
from ccts_dist.report.paper import Reproduction, reproduce
from ccts_dist.report.paper_tables import TABLES


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Run every stage that a table needs and is not done yet, then print the table. Kill it at any "
        "time; run again, it goes on.",
        epilog="examples:\n"
        "  python launch/reproduce.py --table demo\n"
        "  python launch/reproduce.py --table msp --corpus MSP-Podcast --transcripts heard.jsonl --seeds 17 18 19\n"
        "  python launch/reproduce.py --table msp --shards s3://ours/msp --rows 12 --starter 'deepspeed --hostfile H'\n"
        "  python launch/reproduce.py --table iemocap --corpus IEMOCAP --folds 1 2\n"
        "exit codes: 0 done, 1 a stage failed (its log is named), 2 a mistake in what was asked for",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", choices=("demo", *TABLES), required=True, help="which table")
    parser.add_argument("--utterances", type=int, default=4000, help="how many to speak for the demo (%(default)s)")
    paper = parser.add_argument_group("for the paper's tables")
    paper.add_argument("--out", type=Path, metavar="DIR", help="where everything goes (default: the table's name)")
    source = paper.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, metavar="ROOT", help="the corpus on disk; shards are built first")
    source.add_argument("--shards", default="", metavar="SHARDS", help="shards that are there (default: DIR/shards)")
    paper.add_argument("--transcripts", type=Path, metavar="HEARD.jsonl", help="what shards/transcribe.py heard")
    paper.add_argument("--rows", type=int, nargs="+", default=[], metavar="N", help="these and their teachers only")
    paper.add_argument("--folds", type=int, nargs="+", default=[], metavar="N", help="these folds only, from 1")
    paper.add_argument("--seeds", type=int, nargs="+", default=[17], metavar="SEED", help="each row once for each (17)")
    paper.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="for every run; may be repeated")
    paper.add_argument("--starter", default="", metavar="WORDS", help="launcher and its options (default: two ranks)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    if args.table == "demo":  # its run files name this folder
        print("\n" + run_demo(Path("demo"), num_utterances=args.utterances, runs=Path("launch/runs/demo")))
        return 0
    if args.transcripts and not args.corpus:
        raise ConfigError("--transcripts: only shards that are built here can take them. Give --corpus too.")
    wanted = Reproduction(
        table=TABLES[args.table], folder=args.out or Path(args.table), shards=args.shards, corpus=args.corpus,
        transcripts=args.transcripts, rows=tuple(args.rows), fold_numbers=tuple(args.folds),
        seeds=tuple(args.seeds), overrides=tuple(args.set), starter=tuple(shlex.split(args.starter)),
    )  # fmt: skip
    print("\n" + reproduce(wanted))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
