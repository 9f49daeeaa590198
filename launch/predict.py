"""Emotion of audio files: ``python launch/predict.py --model MODEL FILE ...``. See ``--help``."""

import argparse
import csv
import json
import sys

from ccts_dist.errors import CorpusError, run_main
from ccts_dist.registry import load_student
from ccts_dist.report.table import format_table


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Predict activation, valence and dominance of audio files, on the scale of the corpus that the "
        "model was trained on. Any format libsndfile reads, any sample rate; channels are mixed.",
        epilog="examples:\n"
        "  python launch/predict.py --model runs/student/best a.wav b.flac\n"
        "  python launch/predict.py --model models:/emotion@champion --format csv *.wav > emotion.csv\n"
        "A file that cannot be read is named on stderr and left out.\n"
        "exit codes: 0 done, 1 files were left out or the registry failed, 2 a mistake in what was asked for",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="(%(default)s)")
    parser.add_argument("--uri", default="", help="MLflow server; without it MLFLOW_TRACKING_URI, then mlflow.db here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse_args(argv)
    student = load_student(args.model, tracking_uri=args.uri)
    answers: list[dict[str, str | float]] = []
    for file in args.files:
        try:
            answers.append({"file": file, **student.predict([file])[0]})
        except CorpusError as error:
            print("error:", error, file=sys.stderr)
    if args.format == "json":
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    elif args.format == "csv":
        writer = csv.DictWriter(sys.stdout, ["file", *student.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(answers)
    else:
        columns = ("file", *student.columns)
        cells = [[answer[column] for column in columns] for answer in answers]
        rows = [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in cells]
        print(format_table(columns, rows))
    return 1 if len(answers) < len(args.files) else 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
