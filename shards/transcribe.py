"""Write down what a speech recognition model hears in a corpus that has no transcripts."""

from ccts_dist.cli import start
from ccts_dist.commands.transcribe import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("transcribe")
