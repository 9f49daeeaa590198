"""Turn a corpus into a shard set: plain WebDataset tars, an index and a manifest."""

import argparse

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import as_started
from ccts_dist.progress import Progress
from ccts_dist.shards.build.command import build_parser, part_of, read_corpus, settings_of


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``ccts_dist/shards/build/command.py`` has the options."""
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Read the corpus, or make it; build the shards, or join what parts have built; print the outcome."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.shards.set_warnings import print_warnings

    built = join(args) if args.kind == "join" else build(args)
    print(as_started(built.in_words(args.out)))
    if part_of(args) is None:
        print_warnings(args.out)
    return 0


def build(args: argparse.Namespace):
    """All of a corpus, or one part of it."""
    with gc_paused():
        from ccts_dist.shards.build.builder import build_all, build_part, check_build, plan_build
        from ccts_dist.shards.build.pool import warm_up

    part = part_of(args)
    limits = {"max_rejected": args.max_rejected, "max_duration_s": args.max_duration}
    check_build(args.out, shard_bytes=1e6 * args.shard_mb, num_processes=args.processes, **limits)
    warm_up(args.processes)
    corpus, root = read_corpus(args)
    planned = plan_build(corpus.utterances, args.out, settings_of(args, corpus, root))
    with Progress(planned.num_utterances(part), f"build {args.out}", unit="utterances") as bar:
        if part is not None:
            return build_part(planned, part, num_processes=args.processes, progress=bar.advance)
        return build_all(planned, max_rejected=args.max_rejected, num_processes=args.processes, progress=bar.advance)


def join(args: argparse.Namespace):
    """Join what the parts have built."""
    from ccts_dist.shards.build.builder import join_parts, num_to_join

    with Progress(num_to_join(args.out), f"join {args.out}", unit="shards") as bar:
        return join_parts(args.out, max_rejected=args.max_rejected, progress=bar.advance)


if __name__ == "__main__":
    start("build")
