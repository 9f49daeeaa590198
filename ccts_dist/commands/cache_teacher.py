"""Store a teacher's embeddings and predictions: ``deepspeed launch/cache_teacher.py``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``--local_rank`` comes from the launcher."""
    parser = CommandParser(
        description="Write a teacher's embeddings and predictions for a shard set, and the condition that is fitted on "
        "them. Of several teachers it writes the mean. Run it again to resume after it was stopped.",
        epilog="example: deepspeed launch/cache_teacher.py --teacher runs/teacher/best --shards SHARDS --out CACHE\n"
        "exit codes: 0 done, 1 failed, 2 a mistake in the input (named in one line on stderr)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--teacher",
        required=True,
        action="append",
        metavar="MODEL",
        help="a run folder, a model folder, models:/NAME@ALIAS or hf://ORG/NAME; repeat it to average the outputs of "
        "several that have the same targets and embedding_dim (one that is named twice counts twice)",
    )
    parser.add_argument("--shards", required=True, metavar="SHARDS", help="folder or address of the shard set")
    parser.add_argument("--out", type=Path, required=True, metavar="CACHE", help="folder that all ranks share")
    parser.add_argument("--splits", nargs="+", default=[], help="splits to cache (default: all)")
    parser.add_argument(
        "--fit-splits",
        nargs="+",
        default=[],
        help="splits to fit the condition on (default: those that every teacher was trained on)",
    )
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="padded audio per forward pass (120)")
    parser.add_argument(
        "--timeout-s", type=float, default=3600.0, help="a rank gives up when a peer's shard takes longer (3600)"
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.distributed import best_device, process_group, rank_facts, run_on_all_ranks
        from ccts_dist.registry import pull_model_on_ranks
        from ccts_dist.shards.shard_set import open_shard_set
        from ccts_dist.teacher import cache_teacher

    with process_group(rank_facts(), timeout_s=args.timeout_s) as ranks:
        shard_set = run_on_all_ranks(lambda: open_shard_set(args.shards))
        pulled = [pull_model_on_ranks(teacher, ranks) for teacher in args.teacher]
        done = cache_teacher(
            [one.folder for one in pulled], shard_set, args.out, ranks=ranks, device=best_device(ranks),
            fit_splits=args.fit_splits, splits=args.splits, name=", ".join(sorted(args.teacher)),
            registry_version=", ".join(sorted(one.version for one in pulled if one.version)),
            batch_seconds=args.batch_seconds,
        )  # fmt: skip
    if ranks.is_first:
        print(f"{args.out}: {done.words()}")
    return 0


if __name__ == "__main__":
    start("cache-teacher")
