"""The gate study's tables, in Markdown: primary differences, further ones, all arms, whom the gates reject."""

import math
from collections.abc import Sequence
from statistics import fmean

from ccts_dist.records import DIMENSIONS
from ccts_dist.report.gate_study.plan import CELLS, Cell
from ccts_dist.report.gate_study.results import (
    BOUND,
    DISTILLING,
    OTHERS,
    PRIMARY,
    TEACHER,
    Contrast,
    Runs,
    ccc_of,
    contrasts,
    detectable,
)
from ccts_dist.report.markdown_table import format_table
from ccts_dist.report.paired_intervals import Estimate, estimate
from ccts_dist.report.study.tables import COMPARED, spread

LABELS = {"full": "all", "few": "300"}


def gate_tables(runs: Runs) -> str:
    """All tables, of the runs that are there; each with its number of seeds."""
    parts = [
        f"Primary differences on {COMPARED} between runs of one seed: mean and 95 % confidence interval (Student's t), "
        "and the effect that as many seeds would show with 80 % power.\n\n" + _differences(runs, PRIMARY),
        f"The bound on any gate's gain, likewise on {COMPARED}: an oracle instead of no gate.\n\n"
        + _differences(runs, (BOUND,)),
        f"Further differences on {COMPARED}.\n\n" + _differences(runs, (TEACHER, DISTILLING, *OTHERS)),
        "The primary differences on every dimension.\n\n" + _by_dimension(runs),
        "CCC on the test split: mean and standard deviation over n seeds.\n\n" + _arms(runs),
        "Rejected training utterances: share of all, of those whose words are off in valence, and of the others.\n\n"
        + _rejected(runs),
    ]
    return "\n\n".join(parts)


def _differences(runs: Runs, questions: Sequence[str]) -> str:
    rows = []
    for contrast in contrasts(*questions):
        value = contrast.estimate(runs, COMPARED)
        if value is not None:
            rows.append((*_words(contrast), value.in_words(), _detectable(value), value.count))
    return format_table(("difference", "labels", "distilled", "errors", COMPARED, "80 % power", "n"), rows)


def _detectable(value: Estimate) -> str:
    effect = detectable(value)
    return "-" if math.isnan(effect) else f"{effect:.3f}"


def _by_dimension(runs: Runs) -> str:
    rows = []
    for contrast in contrasts(*PRIMARY):
        estimates = [contrast.estimate(runs, dimension) for dimension in DIMENSIONS]
        if estimates[0] is not None:
            rows.append(
                (
                    *_words(contrast),
                    *("-" if value is None else value.in_words() for value in estimates),
                    estimates[0].count,
                )
            )
    return format_table(("difference", "labels", "distilled", "errors", *DIMENSIONS, "n"), rows)


def _words(contrast: Contrast) -> tuple[str, str, str, str]:
    cell = contrast.cell
    return contrast.question, LABELS[cell.labels], cell.term or "-", cell.errors


def _arms(runs: Runs) -> str:
    rows = []
    for cell in sorted(CELLS, key=_order):
        estimates = [estimate(list(ccc_of(runs, cell, dimension).values())) for dimension in DIMENSIONS]
        if estimates[0] is not None:
            rows.append((*_described(cell), *map(spread, estimates), estimates[0].count))
    return format_table(("labels", "errors", "system", "gate", *DIMENSIONS, "n"), rows)


def _described(cell: Cell) -> tuple[str, str, str, str]:
    system = cell.system if cell.system != "student" else cell.term
    return LABELS[cell.labels], cell.errors or "-", system, cell.gate or "-"


def _order(cell: Cell) -> tuple[str, str, str]:
    return cell.labels, cell.errors, cell.term


def _rejected(runs: Runs) -> str:
    rows = []
    for cell in sorted(CELLS, key=_order):
        of_cell = [run for run in runs if run.cell == cell and run.distilled_fraction is not None]
        counted = [run for run in of_cell if run.off_rejected is not None and run.sound_rejected is not None]
        if cell.gate != "all" and counted:
            shares = (
                [1 - (run.distilled_fraction or 0.0) for run in counted],
                [run.off_rejected or 0.0 for run in counted],
                [run.sound_rejected or 0.0 for run in counted],
            )
            rows.append((*_described(cell), *(f"{fmean(share):.1%}" for share in shares), len(counted)))
    return format_table(("labels", "errors", "distilled", "gate", "of all", "of those off", "of the others", "n"), rows)
