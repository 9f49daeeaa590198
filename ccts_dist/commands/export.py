"""Export a student: ``python launch/export.py --model MODEL --format FORMAT --out DIR``. See ``--help``."""

import argparse
from pathlib import Path

from ccts_dist.cli import start
from ccts_dist.errors import gc_paused
from ccts_dist.process.invocation import CommandParser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser(
        description="Write a speech-only model as a folder for AutoModelForAudioClassification and pipeline(), or as "
        "one ONNX file for any batch and length. The folder is of a class of transformers where one computes the same "
        "(mean pooling, one linear head). Otherwise it is the model folder and its code, and needs "
        "trust_remote_code=True. The export predicts recordings of several lengths, alone and in batches. It is kept "
        "only if it agrees with torch to 1e-4.",
        epilog="examples:\n"
        "  python launch/export.py --model runs/student/best --format onnx --out student-onnx\n"
        "  python launch/export.py --model models:/emotion@champion --format transformers --out student-hf\n"
        "  python -c \"from transformers import pipeline; print(pipeline('audio-classification', 'student-hf', "
        "trust_remote_code=True)('a.wav'))\"  # files need ffmpeg\n"
        "ONNX needs pip install ccts-dist[onnx].\n"
        "exit codes: 0 done, 1 the predictions differ or the registry failed, 2 a mistake, or a model that the format "
        "cannot hold",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        "-m",
        required=True,
        help="a run folder, a model folder, models:/NAME@ALIAS, runs:/RUN_ID or hf://ORG/NAME",
    )
    parser.add_argument("--format", choices=("transformers", "onnx"), required=True, help="what to write")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--tracking-uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    with gc_paused():
        from ccts_dist.export.command import export_model

    report = export_model(args.model, args.format, args.out, tracking_uri=args.tracking_uri)
    print(f"wrote {args.out}; largest difference from torch {report.largest_difference:.2g}, over "
          f"{report.num_recordings} recordings in {report.num_batches} batches")  # fmt: skip
    for sentence in report.lost:
        print("lost:", sentence)
    return 0


if __name__ == "__main__":
    start("export")
