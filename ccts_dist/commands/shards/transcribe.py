"""Transcribe a corpus that has no transcripts by a speech recognition model."""

import argparse
from functools import partial
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser
from ccts_dist.progress import Progress

EPILOG = """MODEL is a folder or a name of the hub: a CTC model (wav2vec 2.0, HuBERT, WavLM ...), Whisper or Moonshine.
Writes a JSON line per utterance: key, transcript, confidence 0..1, duration, the model's name and digest. Build with
these transcripts: shards/build.py ... --transcripts ASR.jsonl. The corpus itself is never written to.
An interrupted pass goes on where it stopped: run the same command again.
Exit codes: 0 done; 1 done but for audio that cannot be read, named on stderr; 2 a mistake."""
CORPORA = ("msp-podcast", "iemocap", "manifest")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(description=__doc__, epilog=EPILOG, formatter_class=layout)
    parser.add_argument("kind", choices=CORPORA, metavar="CORPUS", help="msp-podcast, iemocap or manifest")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the corpus, or FILE of a manifest")
    parser.add_argument("--model", "-m", required=True, help="recognition model: folder or name of the hub")
    parser.add_argument("--out", type=Path, metavar="ASR.jsonl", help="default: ROOT-asr.jsonl, beside the corpus")
    parser.add_argument("--language", help='for a model of many languages, "en" or "english"; default: detected')
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--batch-seconds", type=float, default=120.0, help="seconds of audio per forward pass (default: 120)"
    )
    parser.add_argument("--all", action="store_true", help="transcribe utterances that have a transcript too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Read the corpus, load the model, transcribe what has no transcript; name what came of it."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.asr.recognizer import load_recognizer
        from ccts_dist.asr.transcribe import check_place, transcribe, transcripts_path, wanted_utterances
        from ccts_dist.corpus import read_msp_podcast
        from ccts_dist.corpus.iemocap import read_iemocap
        from ccts_dist.corpus.manifest import read_manifest
    readers = (read_msp_podcast, read_iemocap, partial(read_manifest, targets=()))  # no rating is read
    corpus = dict(zip(CORPORA, readers, strict=True))[args.kind](args.root)
    out = args.out or transcripts_path(args.root)
    check_place(out, args.root, corpus.utterances)
    wanted = wanted_utterances(corpus.utterances, everything=args.all)
    if not wanted:
        print(
            f"{args.root}: every utterance has a transcript of the corpus's own. Nothing to transcribe without --all."
        )
        return 0
    choices = {"device": args.device, "language": args.language, "batch_seconds": args.batch_seconds}
    recognizer = load_recognizer(args.model, **choices)
    with Progress(len(wanted), f"transcribe {args.root}", unit="utterances") as bar:
        done = transcribe(wanted, recognizer, out, progress=bar.advance)
    print(done.in_words(out))
    return 1 if done.rejected else 0


if __name__ == "__main__":
    start("transcribe")
