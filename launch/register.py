"""Register a trained model: ``python launch/register.py --checkpoint DIR --name NAME``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.errors import run_main
from ccts_dist.registry import register


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Put a model into the MLflow registry, with its run file, figures, a model card and the digest of "
        "every file, and point an alias at the new version. Nothing that is stored is pickled.",
        epilog="examples:\n"
        "  python launch/register.py --checkpoint runs/student --name emotion\n"
        "  python launch/register.py --checkpoint runs/student/best --name emotion --alias candidate \\\n"
        "      --uri http://mlflow:5000\n"
        "afterwards:\n"
        "  python launch/predict.py --model models:/emotion@candidate speech.wav\n"
        "exit codes: 0 done, 1 the server failed or refused, 2 a mistake in what was asked for",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="a run folder (its best model), or a model folder"
    )
    parser.add_argument("--name", required=True, help="name in the registry; created if it is new")
    parser.add_argument("--alias", default="candidate", help='moved to the new version; "" moves none (%(default)s)')
    parser.add_argument(
        "--uri",
        default="",
        help="MLflow server or sqlite:///FILE; without it MLFLOW_TRACKING_URI, then where the run was tracked, "
        "then mlflow.db in the working directory",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    version = register(args.checkpoint, args.name, alias=args.alias, tracking_uri=args.uri)
    print(f"registered models:/{args.name}/{version}" + (f", alias {args.alias}" if args.alias else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
