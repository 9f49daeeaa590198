"""Turn a corpus into a shard set: plain WebDataset tars, an index and a manifest."""

from ccts_dist.cli import start
from ccts_dist.commands.shards.build import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("build")
