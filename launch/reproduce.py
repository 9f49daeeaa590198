"""Make a table of results from nothing: ``python launch/reproduce.py --table demo``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.reproduce import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("reproduce")
