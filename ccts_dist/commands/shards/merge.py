"""Merge a shard set with a teacher cache into single shards: audio, transcript and teacher side by side."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser
from ccts_dist.progress import Progress

EPILOG = """Train on the result with [data] shards = "MERGED" and teacher_cache = "merged": bit-equal to
training with the separate cache. The cache must have been made for these very shards.
Exit codes: 0 done; 1 damaged shards; 2 a mistake, or a cache of other shards."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, metavar="OUT", help="folder or address of the shard set")
    parser.add_argument(
        "--teacher-cache", required=True, metavar="CACHE", help="folder or address of the teacher cache"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="MERGED", help="folder of the merged shard set")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Open both, merge, print the new digest."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.shards import open_shard_set, open_teacher_cache
        from ccts_dist.shards.merge import merge_shards

    shard_set = open_shard_set(args.shards)
    cache = open_teacher_cache(args.teacher_cache, shard_set)
    with Progress(len(shard_set.manifest.shards), f"merge into {args.out}", unit="shards") as progress:
        digest = merge_shards(shard_set, cache, args.out, progress=progress.advance)
    print(f"{args.out}: merged, digest {digest[:12]}")
    return 0


if __name__ == "__main__":
    start("merge")
