"""Print the statistics of a shard set: hours, counts, speakers, categories and label histograms of each split."""

import argparse
import json
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused, without_controls
from ccts_dist.process.invocation import CommandParser

EPILOG = """Reads the index alone, no audio. A histogram has ten bars, from label 0 to label 1.
Exit codes: 0 done; 1 a damaged set; 2 a mistake, or no shard set there."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="OUT", help="the shard set: a folder or an address")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it too, as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="the same figures for programs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print a block per split, or JSON; draw the picture."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.shards import open_shard_set
        from ccts_dist.shards.plots import check_picture, draw_set
        from ccts_dist.shards.statistics import describe_set, set_statistics, set_warnings, split_statistics

    if args.plot is not None:
        check_picture(args.plot)
    shard_set = open_shard_set(args.shards)
    splits = [split_statistics(shard_set, split) for split in shard_set.manifest.split_names]
    if args.json:
        print(json.dumps(set_statistics(shard_set, splits), ensure_ascii=False, indent=1))
    else:
        lines = [*describe_set(shard_set), *(split.in_words() for split in splits), *set_warnings(shard_set)]
        print(without_controls("\n".join(lines), keep="\n\t"))
    if args.plot is not None:
        draw_set(args.plot, shard_set.manifest.title, splits)
    return 0


if __name__ == "__main__":
    start("info")
