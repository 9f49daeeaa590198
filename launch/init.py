"""Write a first run file: ``python launch/init.py SHARDS -o RUN.toml``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.init import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("init")
