"""``shards/build.py hf``: the options of any Hugging Face data set, and the corpus that they name."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ccts_dist.corpus import Corpus
from ccts_dist.corpus.huggingface import Columns, read_huggingface
from ccts_dist.errors import ConfigError
from ccts_dist.records import Utterance
from ccts_dist.shards.stores.remote import is_address

WORDS = "any data set of Hugging Face's datasets: a name on the hub, a folder, a Parquet file (needs ccts-dist[hf])"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the sub-command."""
    parser.add_argument("source", metavar="NAME_OR_FOLDER", help="owner/name on the hub, a folder, or one file")
    parser.add_argument("--audio", default="audio", metavar="COLUMN", help="with the audio (default: audio)")
    for name in ("text", "category", "speaker", "gender"):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"with the {name}")
    parser.add_argument("--key", metavar="COLUMN", help="with a name for each row (default: split and number)")
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME=COLUMN", help="a column with ratings; as often as needed"
    )
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 7.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--splits", nargs="+", default=[], metavar="NAME", help="to take (default: all)")
    parser.add_argument("--config", metavar="NAME", help="of a data set that has several")
    parser.add_argument("--revision", help="of a data set on the hub: a tag or a commit")
    parser.add_argument("--name", help="name of the corpus (default: the source's)")
    parser.add_argument(
        "--audio-dir",
        type=Path,
        metavar="DIR",
        help="where audio goes that has no file of its own (default: OUT-audio)",
    )


def read(args: argparse.Namespace) -> tuple[Corpus, Path]:
    """The corpus that the options name, and the folder that its audio is named relative to.

    Raises:
        ConfigError: an option off its range, or ``datasets`` is not there.
        CorpusError: the data set cannot be read, or lacks a column or a split.
    """
    if args.audio_dir is None and is_address(args.out):
        raise ConfigError(
            f"--out {args.out}: audio of the rows cannot be put next to it. Name a folder with --audio-dir."
        )
    folder = args.audio_dir or Path(args.out).with_name(Path(args.out).name + "-audio")
    columns = Columns(
        audio=args.audio,
        key=args.key,
        text=args.text,
        category=args.category,
        speaker=args.speaker,
        gender=args.gender,
        targets=parse_targets(args.target),
    )
    corpus = read_huggingface(
        args.source,
        columns=columns,
        audio_folder=folder,
        splits=args.splits,
        config=args.config,
        revision=args.revision,
        name=args.name,
        release=args.release,
        scale=(args.scale[0], args.scale[1]),
    )
    own = Path(args.source).resolve()
    first = next((one.audio for one in corpus.utterances if isinstance(one, Utterance)), folder)
    return corpus, own if own.is_dir() and first.is_relative_to(own) else folder


def parse_targets(given: Sequence[str]) -> dict[str, str]:
    """Column by target, from the values of ``--target``.

    Raises:
        ConfigError: one is not NAME=COLUMN, or a name comes twice.
    """
    targets: dict[str, str] = {}
    for one in given:
        target, _, column = one.partition("=")
        if not target or not (column or "=" not in one) or target in targets:
            raise ConfigError(f"--target {one}: must be NAME=COLUMN, and each name once. As in valence=EmoVal.")
        targets[target] = column or target
    return targets
