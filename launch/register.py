"""Register a trained model, or make one the champion: ``python launch/register.py ... --name NAME``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.register import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("register")
