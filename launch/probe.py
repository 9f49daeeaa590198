"""CCC by encoder layer: ``deepspeed launch/probe.py --model M --shards S --out DIR ...``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.probe import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("probe")
