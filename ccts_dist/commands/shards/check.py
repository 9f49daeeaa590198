"""Find damage in a shard set, and in a teacher cache made for it: a line "shard key what" per finding."""

import argparse
import sys

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused, without_controls
from ccts_dist.process.invocation import CommandParser
from ccts_dist.progress import byte_progress

EPILOG = """Unpacks nothing, follows no link. A finding that is of no single utterance has "-" for its key.
By default every byte is read, and all audio decoded: cuts, blocks of zeros, flipped bits, members that are missing,
doubled, out of order or foreign, tars that are compressed or empty, indexes and manifests that are stale, damaged or
another set's, and audio that was damaged before its checksum was made (by the checksums of its frames and its MD5).
If all that is sound, a teacher's condition is fitted once more on the splits that it names, and must come out the same.
--fast reads manifests, indexes and small files, and looks at the size of the tars: it finds whatever is wrong with
those, and tars that are missing, cut or of another build, but no damage that leaves a tar's size alone.
Leftovers of an interrupted build are reported on stderr, and are no damage.
Exit codes: 0 sound; 1 damaged, or a store does not answer; 2 there is nothing to check."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="OUT", help="folder or address of the shard set")
    parser.add_argument("--teacher-cache", metavar="CACHE", help="folder or address of a teacher cache made for it")
    parser.add_argument("--fast", action="store_true", help="do not read the tars, only their size")
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads that read (default: one per core)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check, print the findings, and name how it stands."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.shards.check.check import check_shard_set
        from ccts_dist.shards.set_warnings import print_warnings

    with byte_progress(f"check {args.shards}") as advance:
        findings = check_shard_set(
            args.shards, args.teacher_cache, fast=args.fast, num_threads=args.threads, progress=advance
        )
    if not args.fast and all(finding.leftover for finding in findings):
        with gc_paused():  # twice as many as the check itself needs
            from ccts_dist.teacher.refit_check import refit_findings
        findings += refit_findings(args.shards, args.teacher_cache)
    damage = [finding for finding in findings if not finding.leftover]
    for finding in findings:
        line = without_controls(f"note: {finding}" if finding.leftover else str(finding), keep="\n\t")
        print(line, file=sys.stderr if finding.leftover else sys.stdout)
    if not damage:
        print_warnings(args.shards)
        print(f"sound: {', '.join(filter(None, (args.shards, args.teacher_cache)))}", file=sys.stderr)
    return 1 if damage else 0


if __name__ == "__main__":
    start("check")
