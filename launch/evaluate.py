"""Score models: ``deepspeed launch/evaluate.py --model MODEL --shards OUT --splits S --out DIR``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.evaluate import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("evaluate")
