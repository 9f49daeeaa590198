"""The command line of ``launch/reproduce.py``."""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

from ccts_dist.errors import ConfigError
from ccts_dist.losses.distill import Distance
from ccts_dist.process.invocation import CommandParser
from ccts_dist.report.gate_study.plan import GateStudy
from ccts_dist.report.paper import PAPERS_DISTANCE, Reproduction
from ccts_dist.report.paper_tables import TABLES
from ccts_dist.report.study.plan import Study, order_of_shares

EPILOG = """examples:
  python launch/reproduce.py --table demo
  python launch/reproduce.py --table demo --seeds 17 18 19 20 21 --corrupt-transcripts 0 10 30 --jobs 2
  python launch/reproduce.py --table gate --jobs 2
  python launch/reproduce.py --table msp --corpus MSP-Podcast --transcripts asr.jsonl --seeds 17 18 19
  python launch/reproduce.py --table msp --shards s3://ours/msp --only 12 --launcher 'deepspeed --hostfile H'
  python launch/reproduce.py --table msp --shards s3://ours/msp --only 11 12 --distances l2 mse
  python launch/reproduce.py --table iemocap --corpus IEMOCAP --folds 1 2
exit codes: 0 done, 1 a stage failed (its log is named), 2 a mistake in the input"""

DISTANCES: tuple[str, ...] = get_args(Distance)

FOLDER_OF_THE_STUDY = Path("demo/study")
FOLDER_OF_THE_GATE_STUDY = Path("demo/gate-study")
NUM_UTTERANCES = 4000
"""Number of utterances of the demo and its study."""


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser(
        description="Run every stage that a table needs and is not done yet, then print the table. Kill it at any "
        "time; run again, it resumes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", choices=("demo", "gate", *TABLES), required=True, help="which table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="SEED", help="seeds of every run (17)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: the table's name)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=VALUE", help="for every run; may be repeated"
    )
    demo = parser.add_argument_group(
        "for the demo; with --seeds or --corrupt-transcripts it becomes a study, in demo/study; "
        "--utterances, --jobs and --report-only are for the table gate too"
    )
    demo.add_argument("--utterances", type=int, help="number of utterances of the demo (4000)")
    demo.add_argument(
        "--corrupt-transcripts", type=int, nargs="+", default=[], metavar="PERCENT",
        help="students and teachers at each of these shares of wrong transcripts (10)",
    )  # fmt: skip
    demo.add_argument("--jobs", type=int, default=1, metavar="N", help="parallel runs of a study, one rank each (1)")
    demo.add_argument("--report-only", action="store_true", help="run nothing: a study's tables from finished runs")
    paper = parser.add_argument_group("for the paper's tables")
    source = paper.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, metavar="ROOT", help="the corpus on disk; shards are built first")
    source.add_argument("--shards", default="", metavar="SHARDS", help="shards that are there (default: DIR/shards)")
    paper.add_argument("--transcripts", type=Path, metavar="ASR.jsonl", help="transcripts by shards/transcribe.py")
    paper.add_argument("--only", type=int, nargs="+", default=[], metavar="ROW", help="these and their teachers only")
    paper.add_argument("--folds", type=int, nargs="+", default=[], metavar="N", help="these folds only, from 1")
    paper.add_argument(
        "--distances", nargs="+", default=[], choices=DISTANCES, metavar="NAME",
        help=f"students with each of these as distill.embedding_loss: {', '.join(DISTANCES)} ({PAPERS_DISTANCE})",
    )  # fmt: skip
    paper.add_argument("--launcher", default="", metavar="WORDS", help="launcher and its options (default: two ranks)")
    return parser


def is_study(args: argparse.Namespace) -> bool:
    """True if the demo is to be run over seeds or shares.

    Raises:
        ConfigError: options of the study for another table, or without it.
    """
    study = bool(args.seeds or args.corrupt_transcripts or args.report_only)
    if args.table == "demo" and not study and (args.out or args.set or args.jobs != 1):
        raise ConfigError("--out, --set, --jobs: the plain demo has no use for them. Add --seeds: that makes a study.")
    if args.table == "gate" and args.corrupt_transcripts:
        raise ConfigError("--corrupt-transcripts: the table gate has shares of its own. Leave it out.")
    if args.table in TABLES and (args.corrupt_transcripts or args.report_only or args.jobs != 1):
        raise ConfigError(
            f"--corrupt-transcripts, --jobs, --report-only: only --table demo has them, not {args.table}. "
            "Leave them out."
        )
    return args.table == "demo" and study


def study_of(args: argparse.Namespace) -> Study:
    """The study that was asked for.

    Raises:
        ConfigError: it cannot be run.
    """
    usual = Study(folder=_folder(args, FOLDER_OF_THE_STUDY))
    return Study(
        folder=usual.folder,
        seeds=tuple(args.seeds) or usual.seeds,
        percents=order_of_shares(args.corrupt_transcripts) or usual.percents,
        num_utterances=args.utterances or NUM_UTTERANCES,
        overrides=tuple(args.set),
        jobs=args.jobs,
    )


def gate_study_of(args: argparse.Namespace) -> GateStudy:
    """The gate study that was asked for.

    Raises:
        ConfigError: it cannot be run.
    """
    usual = GateStudy(folder=_folder(args, FOLDER_OF_THE_GATE_STUDY))
    return replace(
        usual,
        seeds=tuple(args.seeds) or usual.seeds,
        num_utterances=args.utterances or usual.num_utterances,
        overrides=tuple(args.set),
        jobs=args.jobs,
    )


def _folder(args: argparse.Namespace, usual: Path) -> Path:
    folder = args.out or usual
    if args.report_only and not folder.is_dir():
        raise ConfigError(f"--report-only: {folder} is no folder. Name the study's by --out.")
    return folder


def reproduction_of(args: argparse.Namespace) -> Reproduction:
    """The reproduction of one of the paper's tables that was asked for.

    Raises:
        ConfigError: options that do not go together.
    """
    if args.transcripts and not args.corpus:
        raise ConfigError("--transcripts: only shards that are built here can take them. Give --corpus too.")
    return Reproduction(
        table=TABLES[args.table],
        folder=args.out or Path(args.table),
        shards=args.shards,
        corpus=args.corpus,
        transcripts=args.transcripts,
        only=tuple(args.only),
        fold_numbers=tuple(args.folds),
        seeds=tuple(args.seeds) or (17,),
        overrides=tuple(args.set),
        distances=tuple(dict.fromkeys(args.distances)) or (PAPERS_DISTANCE,),
        launcher=tuple(shlex.split(args.launcher)),
    )
