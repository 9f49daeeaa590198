"""CCC by encoder layer: ``deepspeed launch/probe.py --model M --shards S --out DIR ...``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``--local_rank`` comes from the launcher."""
    parser = CommandParser(
        description="Measure the CCC of a linear probe (ridge regression) on the pooled frames of each layer of a "
        "frozen encoder. Each utterance is encoded once. Writes layers.md, .json, .csv and .png into DIR.",
        epilog="examples:\n"
        "  python launch/probe.py --model facebook/hubert-large-ll60k --shards SHARDS --train Train \\\n"
        "      --valid Development --test Test1 --out layers\n"
        "  deepspeed launch/probe.py --model models:/teacher@champion --shards SHARDS ... --out layers\n"
        "exit codes: 0 done, 1 damaged shards or a failing registry, 2 a mistake in the input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", "-m", required=True, help="run folder, model folder, models:/NAME@ALIAS, hf://ORG/NAME, "
        "encoder's folder or hub name, or RUN.toml")  # fmt: skip
    add("--shards", required=True, help="folder or address of the shard set")
    add("--train", nargs="+", required=True, metavar="SPLIT", help="splits that the probes are fitted on")
    add("--valid", nargs="+", required=True, metavar="SPLIT", help="splits that choose the strength of the penalty")
    add("--test", nargs="+", required=True, metavar="SPLIT", help="splits that the probes are scored on")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of table and picture")
    add("--targets", nargs="+", default=[], metavar="NAME", help="labels (default: all that the shards have)")
    add(
        "--pooling",
        choices=("mean", "statistics"),
        default="mean",
        help="pooling of frames; statistics: mean and standard deviation",
    )
    add("--normalize", choices=("auto", "on", "off"), default="auto", help="input of a folder or hub name (auto)")
    add("--batch-size", type=int, default=16, help="utterances per forward pass and rank (%(default)s)")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.distributed import best_device, process_group, rank_facts, run_on_all_ranks
        from ccts_dist.probe import ProbeSplits, open_encoders, probe_layers
        from ccts_dist.registry import is_address, pull_model_on_ranks
        from ccts_dist.report.layer_report import make_folder, write_layers
        from ccts_dist.shards.shard_set import open_shard_set
    splits = ProbeSplits(train=tuple(args.train), valid=tuple(args.valid), test=tuple(args.test))
    with process_group(rank_facts()) as ranks:
        device = best_device(ranks)
        shard_set = run_on_all_ranks(lambda: open_shard_set(args.shards))
        run_on_all_ranks(lambda: make_folder(args.out) if ranks.is_first else None)
        place = pull_model_on_ranks(args.model, ranks).folder if is_address(args.model) else args.model
        encoders = run_on_all_ranks(
            lambda: open_encoders(place, device, do_normalize=args.normalize, pooling=args.pooling)
        )
        result = probe_layers(
            encoders, shard_set, splits, args.targets, ranks=ranks, device=device, micro=args.batch_size
        )
        if ranks.is_first:
            print(write_layers(args.out, result, model=args.model, shards=shard_set.digest))
    return 0


if __name__ == "__main__":
    start("probe")
