"""The files that report what came of the demo study."""

import csv
import io
from dataclasses import asdict

from ccts_dist.files.atomic import atomic_write
from ccts_dist.files.strict_json import json_text
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.study.plan import Study
from ccts_dist.report.study.plot import draw_study
from ccts_dist.report.study.results import Results, read_results
from ccts_dist.report.study.tables import study_tables

TABLES, PICTURE, ROWS, RESULTS = "study.md", "study.svg", "study.csv", "study.json"


def write_results(study: Study) -> str:
    """Tables in Markdown, a picture, and every run as CSV and JSON, of what is there; gives the tables.

    They are left in the study's folder as ``study.md``, ``study.svg``, ``study.csv`` and ``study.json``.
    """
    results = read_results(study)
    text = study_tables(results, study)
    study.folder.mkdir(parents=True, exist_ok=True)
    atomic_write(study.folder / RESULTS, (json_text(asdict(results), indent=1) + "\n").encode())
    atomic_write(study.folder / ROWS, _csv(results).encode())
    atomic_write(study.folder / TABLES, (text + "\n").encode())
    atomic_write(study.folder / PICTURE, draw_study(results, study.percents))
    return text


def _csv(results: Results) -> str:
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("wrong_percent", "seed", "system", *DIMENSIONS, "best_epoch", "distilled_fraction", "seconds"))
    for run in results.runs:
        ccc = (f"{run.ccc[dimension]:.6f}" for dimension in DIMENSIONS)
        fraction = "" if run.distilled_fraction is None else f"{run.distilled_fraction:.6f}"
        rows.writerow((run.percent, run.seed, run.system, *ccc, run.best_epoch, fraction, f"{run.seconds:.1f}"))
    return file.getvalue()
