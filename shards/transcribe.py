"""Write down what a speech recognition model transcribes in a corpus that has no transcripts."""

from ccts_dist.cli import start
from ccts_dist.commands.shards.transcribe import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    start("transcribe")
