"""Turn a corpus into a shard set: plain WebDataset tars, an index and a manifest."""

import argparse
import sys
from pathlib import Path

from ccts_dist.corpus import SpokenConfig, make_spoken_corpus, read_msp_podcast
from ccts_dist.errors import run_main
from ccts_dist.progress import Progress
from ccts_dist.shards.write import build_shard_set, check_build

EPILOG = """An interrupted build goes on where it stopped: run the same command again. What cannot be used is
listed with its reason in OUT/rejected.jsonl. Exit codes: 0 done; 2 a mistake, or too much was rejected."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", required=True, type=Path, metavar="OUT", help="folder of the shard set")
    shared.add_argument("--shard-mb", type=float, default=256, help="size that closes a shard (default: 256; demo: 4)")
    shared.add_argument("--max-rejected", type=float, default=0.01, help="share that may be rejected (default: 0.01)")
    shared.add_argument("--max-duration", type=float, default=600.0, help="reject longer audio, seconds (default: 600)")
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="CORPUS")
    msp = kinds.add_parser("msp-podcast", parents=[shared], help="MSP-Podcast, any release", epilog=EPILOG)
    msp.add_argument("root", type=Path, metavar="ROOT", help="folder with Audios/, Labels/ and perhaps Transcripts/")
    msp.add_argument("--release", default="unknown", help='release for the manifest, such as "1.11"')
    demo = kinds.add_parser("demo", parents=[shared], help="the spoken demo corpus, made on the spot", epilog=EPILOG)
    demo.add_argument("--corpus", type=Path, metavar="DIR", help="where the corpus is made (default: OUT-corpus)")
    demo.add_argument("--utterances", type=int, default=3000, help="how many to speak (default: 3000)")
    demo.add_argument("--words", type=int, default=24, help="emotion words: more make it harder (default: 24)")
    demo.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
    demo.set_defaults(shard_mb=4)  # so that even a small corpus is several shards
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Read the corpus, or make it; build the shards; say what came of it."""
    args = parse_args(argv)
    limits = {"max_rejected": args.max_rejected, "max_duration_s": args.max_duration}
    limits["shard_bytes"] = 1e6 * args.shard_mb
    check_build(args.out, **limits)
    if args.kind == "demo":
        root = args.corpus or args.out.with_name(args.out.name + "-corpus")
        config = SpokenConfig(num_utterances=args.utterances, num_words=args.words, seed=args.seed)
        corpus = make_spoken_corpus(root, config)
    else:
        root, corpus = args.root, read_msp_podcast(args.root, release=args.release)
    facts = {"corpus": corpus.name, "release": corpus.release, "scale": corpus.scale, "targets": corpus.targets}
    with Progress(len(corpus.utterances), f"build {args.out}", unit="utterances") as bar:
        built = build_shard_set(corpus.utterances, args.out, root=root, progress=bar.advance, **facts, **limits)
    print(built.in_words(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
