"""Transcribe a corpus that has no transcripts by a speech recognition model."""

import argparse
from contextlib import suppress
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser
from ccts_dist.progress import Progress
from ccts_dist.shards.build.command import add_corpora, read_corpus

EPILOG = """MODEL is a folder or a name of the hub: a CTC model (wav2vec 2.0, HuBERT, WavLM ...), Whisper or Moonshine.
Writes a JSON line per utterance: key, transcript, confidence 0..1, duration, the model's name and digest. Build with
these transcripts: shards/build.py ... --transcripts ASR.jsonl. The corpus itself is never written to.
An interrupted pass goes on where it stopped: run the same command again.
Exit codes: 0 done; 1 done but for audio that cannot be read, named on stderr; 2 a mistake."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line: the corpora of ``shards/build.py``, with their options."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(description=__doc__, epilog=EPILOG, formatter_class=layout)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="CORPUS")
    add_corpora(kinds, epilog=EPILOG)
    for one in kinds.choices.values():
        _add_options(one)
        one.set_defaults(release="unknown", targets="")  # no rating of a table is read
    return parser.parse_args(argv)


def _add_options(parser: CommandParser) -> None:
    parser.add_argument("--model", "-m", required=True, help="recognition model: folder or name of the hub")
    parser.add_argument("--out", type=Path, metavar="ASR.jsonl", help="default: ROOT-asr.jsonl, beside the corpus")
    with suppress(argparse.ArgumentError):  # ESD has it: the language that is taken is the one that is recognized
        parser.add_argument("--language", help='for a model of many languages, "en" or "english"; default: detected')
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--batch-seconds", type=float, default=120.0, help="seconds of audio per forward pass (default: 120)"
    )
    parser.add_argument("--all", action="store_true", help="transcribe utterances that have a transcript too")


def main(argv: list[str] | None = None) -> int:
    """Read the corpus, load the model, transcribe what has no transcript; name what came of it."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.asr.recognizer import load_recognizer
        from ccts_dist.asr.transcribe import check_place, transcribe, transcripts_path, wanted_utterances
    named = Path(args.source if args.kind == "hf" else args.file if args.kind == "manifest" else args.root)
    # A name on the hub has no place: its transcripts lie in the current folder.
    out = args.out = args.out or transcripts_path(named if named.exists() else Path(named.name))
    if args.kind == "hf":
        args.audio_dir = args.audio_dir or out.with_name(f"{named.stem}-audio")
    corpus, _ = read_corpus(args)
    check_place(out, named, corpus.utterances)
    wanted = wanted_utterances(corpus.utterances, everything=args.all)
    if not wanted:
        print(f"{named}: every utterance has a transcript of the corpus's own. Nothing to transcribe without --all.")
        return 0
    choices = {"device": args.device, "language": args.language, "batch_seconds": args.batch_seconds}
    recognizer = load_recognizer(args.model, **choices)
    with Progress(len(wanted), f"transcribe {named}", unit="utterances") as bar:
        done = transcribe(wanted, recognizer, out, progress=bar.advance)
    print(done.in_words(out))
    return 1 if done.rejected else 0


if __name__ == "__main__":
    start("transcribe")
