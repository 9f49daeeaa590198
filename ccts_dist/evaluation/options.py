"""The command line of ``launch/evaluate.py``."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.invocation import CommandParser

EPILOG = """examples:
  python launch/evaluate.py --model runs/student/best --shards data/msp --split Test1 --out runs/student/test
  deepspeed --num_gpus 2 launch/evaluate.py --model models:/emotion@candidate --model models:/emotion@champion \\
      --shards data/msp --split Test1 --split Test2 --out scores
  python launch/evaluate.py --model M --shards S --split Test1 --out scores --snr 0 10 20 --noises babble noise/street
files in DIR: report.html, a page without external files; metrics.json; and predictions-SPLIT.parquet, a row for each
utterance (predictions-SPLIT.2.parquet of the second model)
exit codes: 0 done, 1 damaged shards or a failing registry, 2 a mistake in the input"""

MERGED = "merged"
"""In the place of a teacher's cache: the shards carry it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be evaluated, and on what."""

    models: tuple[str, ...]
    """The first is the one that counts; the others are what it is compared with."""

    shards: str
    splits: tuple[str, ...]
    out: Path
    uri: str = ""
    bins: tuple[float, ...] = ()
    micro: int = 16
    teacher: str = ""
    """Cache of a teacher, or ``MERGED``; "" for none."""

    snr_db: tuple[float, ...] = ()
    noises: tuple[str, ...] = ()
    """Empty for those that are generated."""

    run: str = ""
    """Whose training curves the page shows; "" for none."""

    transcripts: bool = False
    """Whether the page has the words of the worst utterances."""

    players: bool = False
    """Whether it has their sound."""

    track: bool = False
    """Whether the page goes to the model's run at the MLflow server."""


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``--local_rank`` comes from the launcher."""
    parser = CommandParser(
        description="Score a model on splits, by one prediction for each utterance: CCC, Pearson, C_b, mean "
        "absolute error on 0..1, each with a 95 %% interval over speakers, and Spearman; the same by gender, duration "
        "and transcript length; mean recall of classes between edges (--bins); of categories accuracies and F1.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", "-m", action="append", required=True, help="a run folder (its best model), a model folder, "
        "models:/NAME@ALIAS, models:/NAME/VERSION or hf://ORG/NAME; "
        "with several the first is compared with each of the others, in pairs")  # fmt: skip
    add("--shards", required=True, metavar="OUT", help="folder or address of the shard set")
    add("--split", action="append", required=True, help="which split; may be repeated")
    add("--out", type=Path, required=True, metavar="DIR", help="output folder")
    add("--uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    add("--bins", type=float, nargs="+", default=[], metavar="EDGE", help="also recall: --bins 2 4")
    add(
        "--teacher",
        default="",
        metavar="CACHE",
        help='also compare with the teacher of this cache; "merged": the shards carry it',
    )
    add("--snr", type=float, nargs="+", default=[], metavar="DB", help="also in noise, at these ratios to the speech")
    add("--noises", nargs="+", default=[], metavar="NOISE",
        help="with --snr: white, pink, babble (these three if not given), or folders of audio")  # fmt: skip
    add("--run", default="", metavar="RUN", help="also the training curves of this run folder, or runs:/ID")
    add("--transcripts", action="store_true", help="put the transcripts of the worst utterances into the page; they "
        "may be licensed")  # fmt: skip
    add("--players", action="store_true", help="put their audio into the page; it may be licensed")
    add("--track", action="store_true", help="also put the page into the first model's run at the MLflow server")
    add("--micro", type=int, default=16, help="utterances per forward pass and rank (%(default)s)")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def asked_of(args: argparse.Namespace) -> Asked:
    """What was asked for.

    Raises:
        ConfigError: options that do not go together, or a ratio that is no number.
    """
    for ratio in args.snr:
        if not math.isfinite(ratio):
            raise ConfigError(f"--snr {ratio}: must be a number of decibels. Give one.")
    if args.noises and not args.snr:
        raise ConfigError("--noises: at which ratio to the speech is not said. Give --snr too.")
    return Asked(
        models=tuple(args.model),
        shards=args.shards,
        splits=tuple(dict.fromkeys(args.split)),
        out=args.out,
        uri=args.uri,
        bins=tuple(args.bins),
        micro=args.micro,
        teacher=args.teacher,
        snr_db=tuple(dict.fromkeys(args.snr)),
        noises=tuple(dict.fromkeys(args.noises)),
        run=args.run,
        transcripts=args.transcripts,
        players=args.players,
        track=args.track,
    )
