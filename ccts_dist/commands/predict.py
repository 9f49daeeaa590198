"""Emotion of recordings: ``python launch/predict.py --model MODEL FILE ...``. See ``--help``."""

import argparse

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.inference.command import build_parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    return build_parser().parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.inference.predict import run

    return run(args)


if __name__ == "__main__":
    start("predict")
