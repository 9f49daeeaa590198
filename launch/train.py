"""Train one run: ``deepspeed launch/train.py --config RUN.toml``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.train import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("train")
