"""Emotion of recordings: ``python launch/predict.py --model MODEL FILE ...``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.predict import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("predict")
