"""The files that report what came of the gate study."""

import csv
import io

from ccts_dist.files.atomic import atomic_write
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.gate_study.plan import GateStudy
from ccts_dist.report.gate_study.plot import draw_gates
from ccts_dist.report.gate_study.results import Runs, read_results
from ccts_dist.report.gate_study.tables import gate_tables

TABLES, PICTURE, ROWS = "tables.md", "differences.svg", "runs.csv"


def write_results(study: GateStudy) -> str:
    """Tables in Markdown, a picture, and every run as CSV, in the study's folder; gives the tables."""
    runs = read_results(study)
    text = gate_tables(runs)
    study.folder.mkdir(parents=True, exist_ok=True)
    atomic_write(study.folder / ROWS, _csv(runs).encode())
    atomic_write(study.folder / TABLES, (text + "\n").encode())
    atomic_write(study.folder / PICTURE, draw_gates(runs))
    return text


def _csv(runs: Runs) -> str:
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    shares = ("distilled_fraction", "off_rejected", "sound_rejected")
    rows.writerow(("labels", "errors", "term", "gate", "seed", *DIMENSIONS, *shares))
    for run in runs:
        cell = run.cell
        numbers = (*(run.ccc[dimension] for dimension in DIMENSIONS), *(getattr(run, share) for share in shares))
        cells = ("" if number is None else f"{number:.6f}" for number in numbers)
        rows.writerow((cell.labels, cell.errors, cell.term, cell.gate, run.seed, *cells))
    return file.getvalue()
