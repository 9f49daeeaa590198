"""Register a trained model, or make one the champion: ``python launch/register.py ... --name NAME``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ``--local_rank`` comes from the launcher."""
    parser = CommandParser(
        description="Put a model into the MLflow registry, with its run file, metrics, a model card and the digest of "
        "every file, and point an alias at the new version. Nothing that is stored is pickled. Or (--promote) compare "
        "a candidate with the champion on the same utterances, and make it the champion if it is better.",
        epilog="examples:\n"
        "  python launch/register.py --checkpoint runs/student --name emotion [--alias candidate]\n"
        "  python launch/register.py --promote --name emotion --shards data/msp --splits Test1 --margin 0.01\n"
        "afterwards:\n"
        "  python launch/predict.py --model models:/emotion@champion speech.wav\n"
        "exit codes: 0 done, 1 not better, or the server failed or refused, 2 a mistake in the input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="a run folder (its best model), or a model folder")
    what.add_argument("--promote", action="store_true", help='move "champion" to the version that --alias points at')
    add("--name", required=True, help="name in the registry; created if it is new")
    add("--alias", default="candidate", help='moved to the new version; "" moves none (%(default)s)')
    add("--tracking-uri", default="",
    help="MLflow server or sqlite:///FILE; without it MLFLOW_TRACKING_URI, then where the run "
        "was tracked, then mlflow.db in the working directory")  # fmt: skip
    add("--shards", default="", metavar="SHARDS", help="to promote: folder or address of the shard set")
    add("--splits", action="extend", nargs="+", default=[], metavar="SPLIT", help="to promote: compare on these")
    add("--margin", type=float, default=0.0, metavar="CCC", help="the gain's 95 %% interval must lie above (0)")
    add("--target", default="", help="whose CCC must gain (the mean; UAR without targets)")
    add("--force", default="", metavar="REASON", help="promote in any case; the reason is kept in the version's tags")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.distributed import process_group, rank_facts
        from ccts_dist.registry import register
        from ccts_dist.registry.promote import PromotionRequest, promote
    if not args.promote:
        version = register(args.checkpoint, args.name, alias=args.alias, tracking_uri=args.tracking_uri)
        print(f"registered models:/{args.name}/{version}" + (f", alias {args.alias}" if args.alias else ""))
        return 0
    request = PromotionRequest(name=args.name, shards=args.shards, splits=tuple(args.splits), margin=args.margin,
                      target=args.target, alias=args.alias, reason=args.force)  # fmt: skip
    with process_group(rank_facts()) as ranks:
        outcome = promote(request, ranks=ranks, tracking_uri=args.tracking_uri)
    if ranks.is_first:
        print(outcome.words())
    return 0 if outcome.is_champion else 1


if __name__ == "__main__":
    start("register")
