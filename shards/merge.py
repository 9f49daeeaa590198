"""Merge a shard set with a teacher cache into single shards: audio, transcript and teacher side by side."""

from ccts_dist.cli import start
from ccts_dist.commands.shards.merge import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("merge")
