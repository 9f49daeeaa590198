"""Send what a run reported while its server was away: ``python launch/sync.py RUN``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.sync import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("sync")
