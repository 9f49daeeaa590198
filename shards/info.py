"""Report what a shard set holds: hours, counts, speakers, categories and label histograms of each split."""

from ccts_dist.cli import start
from ccts_dist.commands.shards.info import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("info")
