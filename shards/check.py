"""Find damage in a shard set, and in a teacher cache made for it: a line "shard key what" per finding."""

import argparse
import sys
from pathlib import Path

from ccts_dist.errors import run_main
from ccts_dist.progress import Progress
from ccts_dist.shards.check import check_shard_set

EPILOG = """Reads every byte; unpacks nothing, follows no link.
A finding that is of no single utterance has "-" for its key.
Exit codes: 0 sound; 1 damaged; 2 there is nothing to check."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, metavar="OUT", help="folder of the shard set")
    parser.add_argument("--teacher", type=Path, metavar="CACHE", help="folder of a teacher cache made for it")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check, print the findings, and say how it stands."""
    args = parse_args(argv)
    folders = [folder for folder in (args.shards, args.teacher) if folder is not None]
    total = sum(len(list(folder.glob("*.tar"))) for folder in folders)
    with Progress(total, f"check {args.shards}", unit="shards") as progress:
        findings = check_shard_set(args.shards, args.teacher, progress=progress.advance)
    for finding in findings:
        print(finding)
    if not findings:
        print(f"sound: {', '.join(str(folder) for folder in folders)}", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
