"""The command line of ``launch/evaluate.py``."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccts_dist.errors import ConfigError
from ccts_dist.process.invocation import CommandParser

EPILOG = """examples:
  python launch/evaluate.py --model runs/student/best --shards data/msp --splits Test1 --out runs/student/test
  deepspeed --num_gpus 2 launch/evaluate.py --model models:/emotion@candidate --model models:/emotion@champion \\
      --shards data/msp --splits Test1 Test2 --out scores
  python launch/evaluate.py --model M --shards S --splits Test1 --out scores --snr 0 10 20 --noises babble noise/street
files in DIR: report.html, a page without external files; metrics.json; and predictions-SPLIT.parquet, a row for each
utterance (predictions-SPLIT.2.parquet of the second model)
exit codes: 0 done, 1 damaged shards or a failing registry, 2 a mistake in the input"""

MERGED = "merged"
"""In the place of a teacher's cache: the shards carry it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of an evaluation."""

    models: tuple[str, ...]
    """The first is the one that counts; the others are what it is compared with."""

    shards: str
    splits: tuple[str, ...]
    out: Path
    tracking_uri: str = ""
    bins: tuple[float, ...] = ()
    batch_size: int = 16
    teacher_cache: str = ""
    """Cache of a teacher, or ``MERGED``; "" for none."""

    snr_db: tuple[float, ...] = ()
    noises: tuple[str, ...] = ()
    """Empty for those that are generated."""

    impulse_responses: tuple[str, ...] = ()
    """Folders, each a kind of room."""

    run: str = ""
    """Whose training curves the page shows; "" for none."""

    transcripts: bool = False
    """True if the page has the transcripts of the worst utterances."""

    text_model: str = ""
    """Whose predictions show how lexical the others are; "" for none."""

    ages: Path | None = None
    """Table of the speakers' ages; None for none."""

    submission: Path | None = None
    """Place to which the first model's predictions are written for a challenge; None for nowhere."""

    embed_audio: bool = False
    """True if it has their sound."""

    log_to_mlflow: bool = False
    """True if the page goes to the model's run at the MLflow server."""


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``--local_rank`` comes from the launcher."""
    parser = CommandParser(
        description="Score a model on splits, by one prediction for each utterance: CCC, Pearson, C_b, mean "
        "absolute error on 0..1, each with a 95 % interval over speakers, and Spearman; the same by gender, duration "
        "and transcript length; mean recall of classes between edges (--bins); of categories accuracies and F1.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", "-m", dest="models", action="append", required=True, help="a run folder (its best model), "
        "a model folder, models:/NAME@ALIAS, models:/NAME/VERSION or hf://ORG/NAME; "
        "with several the first is compared with each of the others, in pairs")  # fmt: skip
    add("--shards", required=True, metavar="OUT", help="folder or address of the shard set")
    add("--splits", action="extend", nargs="+", required=True, metavar="SPLIT", help="which splits")
    add("--out", type=Path, required=True, metavar="DIR", help="output folder")
    add("--tracking-uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    add("--bins", type=float, nargs="+", default=[], metavar="EDGE", help="also recall: --bins 2 4")
    add(
        "--teacher-cache",
        default="",
        metavar="CACHE",
        help='also compare with the teacher of this cache; "merged": the shards carry it',
    )
    add("--text-model", default="", metavar="MODEL", help="also how lexical the models are: correlation with this "
        "text-only model given the labels, and CCC by the valence that it predicts")  # fmt: skip
    add("--submission", type=Path, metavar="FILE.csv", help="also the first model's predictions of the split, as the "
        "MSP-Podcast challenges take them: FileName, EmoAct, EmoVal, EmoDom, or FileName, EmoClass")  # fmt: skip
    add("--ages", type=Path, metavar="FILE.csv", help="also groups and gaps by age: columns speaker, age (years)")
    add(
        "--snr",
        dest="snr_db",
        type=float,
        nargs="+",
        default=[],
        metavar="DB",
        help="also in noise, at these ratios to the speech",
    )
    add("--noises", nargs="+", default=[], metavar="NOISE",
        help="with --snr: white, pink, babble (these three if not given), or folders of audio")  # fmt: skip
    add("--impulse-responses", nargs="+", default=[], metavar="DIR",
        help="also reverberated, by the impulse responses in each of these folders")  # fmt: skip
    add("--run", default="", metavar="RUN", help="also the training curves of this run folder, or runs:/ID")
    add("--transcripts", action="store_true", help="put the transcripts of the worst utterances into the page; they "
        "may be licensed")  # fmt: skip
    add("--embed-audio", action="store_true", help="put their audio into the page; it may be licensed")
    add(
        "--log-to-mlflow", action="store_true", help="also put the page into the first model's run at the MLflow server"
    )
    add("--batch-size", type=int, default=16, help="utterances per forward pass and rank (%(default)s)")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def asked_of(args: argparse.Namespace) -> Asked:
    """Options from parsed arguments.

    Raises:
        ConfigError: options that do not go together, or a ratio that is no number.
    """
    if "" in args.impulse_responses:
        raise ConfigError("--impulse-responses '': must be folders of audio files. Name them.")
    for ratio in args.snr_db:
        if not math.isfinite(ratio):
            raise ConfigError(f"--snr {ratio}: must be a number of decibels. Give one.")
    if args.noises and not args.snr_db:
        raise ConfigError("--noises: no ratio to the speech is given. Give --snr too.")
    if args.submission is not None and len(set(args.splits)) != 1:
        raise ConfigError(
            f"--submission {args.submission}: a challenge takes one split, and --splits names {len(set(args.splits))}. "
            "Evaluate that split by itself."
        )
    once = ("splits", "snr_db", "noises", "impulse_responses")
    given: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "local_rank"}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Asked(**{**given, **{name: tuple(dict.fromkeys(given[name])) for name in once}})
