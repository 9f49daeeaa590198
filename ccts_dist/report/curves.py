"""The curves of two runs, and how far they are apart, as a picture."""

import math
from pathlib import Path

from ccts_dist.plotting import MODEL, OTHER, REJECTED, TEACHER, drawing, legend_above, save_picture, span_decades
from ccts_dist.report.comparison import Comparison, difference
from ccts_dist.report.recorded import RecordedRun, metric_value


def draw_curves(path: Path, a: RecordedRun, b: RecordedRun, comparison: Comparison) -> None:
    """Draw the compared figure of both runs, and below it the difference in the steps they have in common.

    The difference is drawn on a logarithmic scale, with the tolerance as a line; steps without any difference, or with
    an infinite one, are omitted from it.

    Raises:
        ConfigError: the file cannot be written.
    """
    key = comparison.key
    far = {
        step: difference(*(metric_value(run.steps[step].get(key)) for run in (a, b)))
        for step in comparison.common_steps
    }
    drawn = {step: value for step, value in far.items() if 0 < value < math.inf}
    with drawing(width=8.0, height=5.5, page=False) as figure:
        curves, apart = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for letter, run, style, color in (("A", a, "-", MODEL), ("B", b, "--", OTHER)):
            values = [metric_value(row.get(key)) for row in run.steps.values()]
            curves.plot(list(run.steps), values, style, color=color, linewidth=1, label=f"{letter}: {run.name}")
        if span_decades(value for line in curves.lines for value in line.get_ydata() if math.isfinite(value)):
            curves.set_yscale("log")
            curves.yaxis.set_major_formatter("{x:g}")
        curves.set_ylabel(key)
        legend_above(figure, curves)
        apart.set_ylabel("difference")
        apart.set_xlabel("step")
        if drawn:
            apart.set_yscale("log")
            marks = [*drawn.values(), comparison.tolerance or min(drawn.values())]
            apart.set_ylim(
                min(marks) / 2, max(marks) * 2
            )  # before there are points: by itself it warns of a single one
            apart.plot(list(drawn), list(drawn.values()), ".", markersize=3, color=REJECTED)
            if comparison.tolerance > 0:
                apart.axhline(comparison.tolerance, color=TEACHER, linewidth=1, linestyle="--")
                apart.set_title(f"dashed: tolerance {comparison.tolerance:g}", fontsize="small")
        else:
            apart.text(0.5, 0.5, "no difference", ha="center", va="center", transform=apart.transAxes)
        if comparison.primary.diverges_at is not None:
            for axes in (curves, apart):
                axes.axvline(comparison.primary.diverges_at, color="#cc6677", linewidth=1)
        save_picture(figure, path)
