"""Report where two runs part: ``python launch/compare.py RUN_A RUN_B``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.compare import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("compare")
