"""The command line of ``shards/build.py``: its sub-commands, and the corpus that each of them reads."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ccts_dist.corpus import Corpus, SpokenConfig, make_spoken_corpus, read_manifest
from ccts_dist.corpus.asr_transcripts import apply_transcripts, read_transcripts
from ccts_dist.corpus.speaker_splits import resplit_by_speaker
from ccts_dist.errors import ConfigError
from ccts_dist.process.invocation import CommandParser
from ccts_dist.progress import log
from ccts_dist.shards.build import hf_command
from ccts_dist.shards.build.corpora import FOLDER_CORPORA
from ccts_dist.shards.build.plan import BuildSettings
from ccts_dist.shards.build.plan_shards import Part, parse_part
from ccts_dist.shards.stores.remote import is_address

DESCRIPTION = "Turn a corpus into a shard set: plain WebDataset tars, an index and a manifest."

EPILOG = """An interrupted build resumes where it stopped: run the same command again. What cannot be used is listed
with its reason in OUT/rejected.jsonl.

OUT is a folder, or an address such as s3://bucket/folder; credentials belong in the environment, not in it.

On many machines: run the same command in each job of an array with --part 1/N to --part N/N, at the same time if you
like, and then "build.py join OUT" once. The result is the one that a single builder makes, byte for byte.

Exit codes: 0 done; 1 failed (run it again); 2 a mistake, too much was rejected, or parts are missing at the join."""

_SIZE = """largest size of a shard in MB (default: %(default)g), as estimated from the size of its audio files before
any is opened: 16 kHz wave and FLAC files come out below it (speech in wave files at about half), telephone speech at up
to four times, MP3, Ogg and Opus files near it"""


def build_parser() -> CommandParser:
    """The parser of the whole command."""
    limits, shared = (CommandParser(add_help=False) for _ in range(2))
    limits.add_argument(
        "--max-rejected",
        type=float,
        default=0.01,
        help="share of utterances that may be rejected (default: 0.01); with --part, join applies it",
    )
    shared.add_argument("--release", default="unknown", help='release for the manifest, such as "1.11"')
    shared.add_argument("--part", metavar="I/N", help="make only this share of the shards; I is from 1 to N")
    shared.add_argument(
        "--transcripts",
        type=Path,
        metavar="ASR.jsonl",
        help="transcripts by shards/transcribe.py, for utterances that have none",
    )
    shared.add_argument(
        "--min-confidence", type=float, default=0.0, help="least confidence of such a transcript, 0 to 1 (default: 0)"
    )
    parser = CommandParser(description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="CORPUS")
    by_speaker = CommandParser(add_help=False)
    by_speaker.add_argument(
        "--by-speaker", action="store_true", help="make Train, Development and Test by speaker, in place of its splits"
    )
    by_speaker.add_argument("--folds", type=int, metavar="K", help="with --by-speaker: Fold1 to FoldK instead")
    add_corpora(kinds, [_output_options(shard_mb=256.0), limits, shared], [by_speaker], epilog=EPILOG)
    _add_demo(kinds, [_output_options(shard_mb=4.0), limits])  # so that even a small corpus is several shards
    join = _add(kinds, "join", [limits], "finish a build whose parts have all been made")
    join.add_argument("out", metavar="OUT", help="where the parts were built")
    return parser


def _output_options(*, shard_mb: float) -> CommandParser:
    # A parser of its own for each default: sub-commands share the options of a common parent, defaults and all.
    out = CommandParser(add_help=False)
    out.add_argument("--out", required=True, metavar="OUT", help="where the shard set goes: a folder or an address")
    out.add_argument("--shard-mb", type=float, default=shard_mb, help=_SIZE)
    out.add_argument("--max-duration", type=float, default=600.0, help="reject longer audio, seconds (default: 600)")
    out.add_argument("--processes", type=int, default=num_cores(), help="that make shards (default: one per core)")
    return out


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def read_corpus(args: argparse.Namespace) -> tuple[Corpus, Path]:
    """The corpus that the user named, and its folder; the demo corpus is made if it is not there.

    Counts audio that no row names on stderr.

    Raises:
        CorpusError: the folder or file is not one of such a corpus, or the transcripts are of another one.
        ConfigError: an option off its range.
    """
    if args.kind == "demo":
        if args.corpus is None and is_address(args.out):
            raise ConfigError(f"--out {args.out}: the demo corpus cannot be made there. Name a folder with --corpus.")
        root = args.corpus or Path(args.out).with_name(Path(args.out).name + "-corpus")
        config = SpokenConfig(
            num_utterances=args.utterances, num_words=args.words, wrong_transcripts=args.corrupt_transcripts / 100,
            seed=args.seed, transcript_errors=args.transcript_errors,
        )  # fmt: skip
        return make_spoken_corpus(root, config), root
    if getattr(args, "folds", None) is not None and not getattr(args, "by_speaker", True):
        raise ConfigError("--folds: are folds of speakers. Add --by-speaker.")
    if getattr(args, "min_confidence", 0.0) and args.transcripts is None:
        raise ConfigError("--min-confidence: names what to leave out of --transcripts, and none are given. Name them.")
    if args.kind == "manifest":
        targets = None if args.targets is None else [target for target in args.targets.split(",") if target]
        corpus = read_manifest(
            args.file, name=args.name, release=args.release, targets=targets, scale=(args.scale[0], args.scale[1])
        )
        root = args.file.parent
    elif args.kind == "hf":
        corpus, root = hf_command.read(args)
    else:
        read = {one.name: one.read for one in FOLDER_CORPORA}[args.kind]
        corpus, root = read(args), getattr(args, "audio", args.root)
    _warn_unnamed(corpus)
    if getattr(args, "by_speaker", False):
        corpus = replace(corpus, utterances=tuple(resplit_by_speaker(corpus.utterances, args.folds)))
    if getattr(args, "transcripts", None) is not None:
        transcripts = apply_transcripts(
            corpus.utterances, read_transcripts(args.transcripts), min_confidence=args.min_confidence
        )
        corpus = replace(corpus, utterances=transcripts)
    return corpus, root


def settings_of(args: argparse.Namespace, corpus: Corpus, root: Path) -> BuildSettings:
    """Build settings from the options."""
    return BuildSettings(
        corpus=corpus.name,
        release=corpus.release,
        scale=corpus.scale,
        targets=corpus.targets,
        root=root,
        shard_bytes=int(1e6 * args.shard_mb),
        max_duration_s=args.max_duration,
    )


def part_of(args: argparse.Namespace) -> Part | None:
    """The part that the user named; None for the whole.

    Raises:
        ConfigError: it is no part.
    """
    named = getattr(args, "part", None)
    return None if named is None else parse_part(named)


def _warn_unnamed(corpus: Corpus) -> None:
    """Count on stderr the audio files that are passed over: copies, and those of no row or name of the corpus."""
    if corpus.unnamed:
        names = ", ".join(path.name for path in corpus.unnamed[:3])
        more = ", ..." if len(corpus.unnamed) > 3 else ""
        count = len(corpus.unnamed)
        log(f"{corpus.name}: {count} audio files are passed over, as copies or as none of the corpus: {names}{more}")


def add_corpora(
    kinds: "argparse._SubParsersAction[CommandParser]",
    parents: Sequence[CommandParser] = (),
    resplit_parents: Sequence[CommandParser] = (),
    *,
    epilog: str,
) -> None:
    """A sub-command for each kind of corpus, with its own options and those of the parents.

    Args:
        resplit_parents: further options of corpora whose splits can be made by speaker.
    """
    both = [*parents, *resplit_parents]
    for one in FOLDER_CORPORA:
        parser = _add(kinds, one.name, both if one.can_resplit else parents, one.words, epilog)
        parser.add_argument("root", type=Path, metavar="ROOT", help=one.root)
        one.add_options(parser)
    hf_command.add_options(_add(kinds, "hf", both, hf_command.WORDS, epilog))
    words = "any other corpus, from a table of its utterances (CSV or JSON lines)"
    manifest = _add(kinds, "manifest", both, words, epilog)
    manifest.add_argument(
        "file", type=Path, metavar="FILE", help="columns key, audio, split; perhaps transcript, speaker; targets"
    )
    manifest.add_argument("--name", help="name of the corpus (default: the file's)")
    manifest.add_argument("--targets", metavar="A,B", help="columns with ratings (default: all that are no others)")
    manifest.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(1.0, 7.0),
        metavar=("LOW", "HIGH"),
        help="lowest and highest rating (default: 1 7)",
    )


def _add(
    kinds: "argparse._SubParsersAction[CommandParser]",
    name: str,
    parents: Sequence[CommandParser],
    words: str,
    epilog: str = EPILOG,
) -> CommandParser:
    formatter = argparse.RawDescriptionHelpFormatter
    return kinds.add_parser(
        name, parents=[*parents], help=words, description=words, epilog=epilog, formatter_class=formatter
    )


def _add_demo(kinds: "argparse._SubParsersAction[CommandParser]", parents: list[CommandParser]) -> None:
    demo = _add(kinds, "demo", parents, "the spoken demo corpus, made on the spot")
    demo.add_argument("--corpus", type=Path, metavar="DIR", help="where the corpus is made (default: OUT-corpus)")
    demo.add_argument("--utterances", type=int, default=3000, help="number of utterances (default: 3000)")
    demo.add_argument("--words", type=int, default=24, help="emotion words: more make it harder (default: 24)")
    demo.add_argument(
        "--corrupt-transcripts",
        type=float,
        default=10.0,
        help="percent of the transcripts that are wrong (default: 10)",
    )
    demo.add_argument(
        "--transcript-errors", choices=("shuffled", "misheard"), default="shuffled",
        help="wrong transcripts: of another utterance, or with words that sound alike (default: shuffled)",
    )  # fmt: skip
    demo.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
