"""Put a model on Hugging Face's hub: ``python launch/push.py MODEL ORG/NAME``. See ``--help``."""

import argparse

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Put a model on Hugging Face's hub as one folder, for hf://ORG/NAME here and for transformers' "
        "pipeline there: the model folder, config.json, its code and a model card. A model with a text branch or an "
        "encoder that transformers lacks goes without config.json and code.",
        epilog="examples:\n"
        "  python launch/push.py runs/student/best my-org/student --private\n"
        "  python launch/push.py models:/student@champion my-org/student --license cc-by-nc-4.0 --language en\n"
        "  python launch/predict.py --model hf://my-org/student a.wav\n"
        "The token is that of hf auth login, or HF_TOKEN. HF_ENDPOINT names another hub.\n"
        "exit codes: 0 done, 1 the hub failed or refused, 2 a mistake",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run folder, a model folder, models:/NAME@ALIAS or runs:/RUN_ID")
    add("repo", metavar="ORG/NAME", help="of the hub; created if new")
    add("--private", action="store_true", help="only members see it; refused where it is there and public")
    add("--revision", default="", metavar="BRANCH", help="branch to push to, created if new; the main branch without")
    add("--license", default="", metavar="ID", help='for the card, such as cc-by-nc-4.0; "other" without')
    add("--language", nargs="+", default=(), metavar="CODE", help="for the card, such as en")
    add("--tracking-uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.export.push import push_model

    pushed = push_model(
        args.model, args.repo, private=args.private, revision=args.revision, license=args.license,
        language=tuple(args.language), tracking_uri=args.tracking_uri,
    )  # fmt: skip
    print(f"pushed {pushed.url}\nuse it: --model {pushed.model}")
    if pushed.not_for_transformers:
        print("not for transformers:", pushed.not_for_transformers)
    return 0


if __name__ == "__main__":
    start("push")
