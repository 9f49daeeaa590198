"""Write a first run file for a shard set: ``python launch/init.py SHARDS -o RUN.toml``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser, as_started


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Write a run file that trains on a shard set, with a comment for every key. Splits, targets or "
        "categories, batch sizes and durations come from the set. Without --with-text or --teacher-cache it "
        "is a model of speech alone, and no teacher.",
        epilog="examples:\n"
        "  python launch/init.py SHARDS --with-text -o teacher.toml\n"
        "  python launch/init.py SHARDS --teacher-cache CACHE -o student.toml\n"
        "  python launch/init.py SHARDS --small -o try.toml\n"
        "  python launch/train.py teacher.toml --check\n"
        "exit codes: 0 done, 1 a damaged set, 2 a mistake, or RUN.toml is there already",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", metavar="SHARDS", help="the shard set: a folder or an address")
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="RUN.toml", help="the run file; must be new")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--with-text", action="store_true", help="a teacher: a model of speech and transcripts")
    kind.add_argument("--teacher-cache", default="", metavar="CACHE", help="a student: a model of speech that learns "
                      'from this cache, which may still be to come; "merged": the shards carry it')  # fmt: skip
    parser.add_argument("--encoder", default="", metavar="NAME", help="speech encoder: hub name, folder, or filterbank "
                        "(default: facebook/hubert-large-ll60k)")  # fmt: skip
    parser.add_argument("--text-encoder", default="", metavar="NAME", help="of a teacher: hub name or folder "
                        "(default: google-bert/bert-base-uncased)")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="small encoders with random weights in place of the "
                        "defaults: nothing is downloaded, and a laptop trains them")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.shards.shard_set import open_shard_set
        from ccts_dist.train.starter.facts import set_facts
        from ccts_dist.train.starter.run_file import Wanted, run_file_text, write_run_file

    kind = "teacher" if args.with_text else "student" if args.teacher_cache else "speech"
    wanted = Wanted(kind=kind, shards=args.shards, name=args.out.stem, cache=args.teacher_cache, encoder=args.encoder,
                    text_encoder=args.text_encoder, small=args.small)  # fmt: skip
    write_run_file(args.out, run_file_text(wanted, set_facts(open_shard_set(args.shards))))
    print(as_started(f"wrote {args.out}; check it: python launch/train.py {args.out} --check"))
    return 0


if __name__ == "__main__":
    start("init")
