"""A model for Hugging Face's hub: ``python launch/push.py MODEL ORG/NAME``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.push import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("push")
