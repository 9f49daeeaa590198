"""The gate study's picture: the primary differences on valence, with their intervals."""

import io
import math

from ccts_dist.plotting import INTERVAL, MODEL, OTHER, REJECTED, TEACHER, drawing, legend_above
from ccts_dist.report.gate_study.results import BOUND, CONFIDENCE, FINDS, GAIN, Runs, contrasts
from ccts_dist.report.gate_study.tables import LABELS
from ccts_dist.report.study.tables import COMPARED

MARKS = {
    GAIN: ("oracle - random: is there anything to gain", TEACHER, "o"),
    FINDS: ("condition - random: does the gate find it", MODEL, "s"),
    CONFIDENCE: ("confidence - random", OTHER, "D"),
    BOUND: ("oracle - no gate: the bound", REJECTED, "^"),
}


def draw_gates(runs: Runs) -> bytes:
    """Draw each difference with its 95 % interval over seeds as an SVG file; equal results give equal bytes."""
    points = [(one, one.estimate(runs, COMPARED)) for one in contrasts(*MARKS)]
    shown = [(one, value) for one, value in points if value is not None]
    groups = sorted({(one.cell.labels, one.cell.term, one.cell.errors) for one, _ in shown})
    with drawing(width=8.0, height=1.2 + 0.55 * max(1, len(groups)), page=False) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=REJECTED, linestyle="--")
        for number, (question, (words, color, marker)) in enumerate(MARKS.items()):
            drawn = [(one, value) for one, value in shown if one.question == question]
            if drawn:
                places = [groups.index((one.cell.labels, one.cell.term, one.cell.errors)) for one, _ in drawn]
                axes.errorbar(
                    [value.mean for _, value in drawn],
                    [place + 0.17 * (number - 1.5) for place in places],
                    xerr=[0.0 if math.isnan(value.half_width) else value.half_width for _, value in drawn],
                    color=color, marker=marker, label=words, **INTERVAL,
                )  # fmt: skip
        axes.set_yticks(
            range(len(groups)), [f"{LABELS[labels]} labels, {term}, {errors} errors" for labels, term, errors in groups]
        )
        axes.set_ylim(max(1, len(groups)) - 0.5, -0.5)
        axes.set_xlabel(f"difference in CCC of {COMPARED}, same seed, 95 % interval")
        legend_above(figure, axes, columns=2)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
