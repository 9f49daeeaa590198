"""Keep output of a teacher for every utterance: ``deepspeed launch/cache_teacher.py``. See ``--help``."""

from ccts_dist.cli import start
from ccts_dist.commands.cache_teacher import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("cache-teacher")
