"""Find damage in a shard set, and in a teacher cache made for it: a line "shard key what" per finding."""

from ccts_dist.cli import start
from ccts_dist.commands.shards.check import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("check")
