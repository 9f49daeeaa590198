"""A student over HTTP: ``python launch/serve.py MODEL``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.serve import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("serve")
