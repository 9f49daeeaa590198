"""The command line of ``launch/predict.py``."""

import argparse
from pathlib import Path

from ccts_dist.inference.rows import FORMATS
from ccts_dist.process.invocation import CommandParser

EPILOG = """examples:
  python launch/predict.py --model runs/student/best a.wav b.flac
  python launch/predict.py --model models:/emotion@champion --format jsonl --out emotion.jsonl RECORDINGS
  python launch/predict.py --model models:/emotion@champion --format csv --embeddings emotion.parquet *.wav
  python launch/predict.py --model models:/emotion@champion --window 5 --hop 1 --plot curve.svg interview.mp3
A file that cannot be read (missing, empty, cut, no audio, under 25 ms; without --window, over 10 min) is named on
stderr with the reason and skipped. Memory does not grow with the number of files, nor with --window with their
duration. Ctrl-C leaves FILE.partial, with the predictions so far.
exit codes: 0 done, 1 files were skipped, it was stopped, or the registry failed, 2 a mistake in the input"""

BATCH_SECONDS = 60.0
"""Two forward passes run at a time on a CPU, so half of what ``Student.predict`` takes."""


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser(
        description="Predict activation, valence and dominance of recordings, on the scale of the corpus that the "
        "model was trained on. Any format libsndfile reads, any sample rate; channels are mixed. Predictions come in "
        "the order of the names.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", "-m", required=True, help="a run folder (its best model), a model folder, models:/NAME@ALIAS, "
        "models:/NAME/VERSION, runs:/RUN_ID or hf://ORG/NAME")  # fmt: skip
    add("files", nargs="+", metavar="FILE", help="audio files, and folders: all audio files in them and below")
    add("--format", choices=FORMATS, default="table", help="json: an array, jsonl: an object a line (%(default)s)")
    add("--out", type=Path, metavar="FILE", help="output file (default: stdout)")
    add(
        "--embeddings", type=Path, metavar="FILE",
        help="write the embeddings too: .npy (and FILE.keys.jsonl), .parquet or .safetensors",
    )  # fmt: skip
    add(
        "--batch-seconds", type=float, default=BATCH_SECONDS, metavar="S",
        help="padded audio in a forward pass; on a CPU two run at a time (%(default)s)",
    )  # fmt: skip
    add("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    add("--tracking-uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    windows = parser.add_argument_group("for long recordings")
    windows.add_argument(
        "--window", type=float, metavar="S",
        help="cut into windows of so many seconds, the last one aligned to the end; a row of each, then their mean",
    )  # fmt: skip
    windows.add_argument("--hop", type=float, metavar="S", help="from one window to the next (default: a window)")
    windows.add_argument(
        "--plot", type=Path, metavar="FILE|FOLDER", help="draw the curve: .png, .svg, .pdf, or a folder for many"
    )
    return parser
