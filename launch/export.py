"""A student for other programs: ``python launch/export.py --model MODEL --format FORMAT --out DIR``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.export import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("export")
