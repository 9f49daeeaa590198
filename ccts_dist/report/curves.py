"""The curves of two runs, and how far they are apart, as a picture."""

import math
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.report.comparison import Comparison, difference
from ccts_dist.report.recorded import RecordedRun, metric_value


def draw_curves(path: Path, a: RecordedRun, b: RecordedRun, comparison: Comparison) -> None:
    """Draw the compared figure of both runs, and below it the difference in the steps they have in common.

    The difference is drawn on a logarithmic scale, with the tolerance as a line; steps without any difference, or with
    an infinite one, are left out of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only pictures need it
    from matplotlib.figure import Figure

    key = comparison.key
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, apart = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for letter, run, style in (("A", a, "-"), ("B", b, "--")):
        values = [metric_value(row.get(key)) for row in run.steps.values()]
        curves.plot(list(run.steps), values, style, label=f"{letter}: {run.name}", linewidth=1.2)
    curves.set_ylabel(key)
    curves.legend(fontsize="small")
    far = {
        step: difference(*(metric_value(run.steps[step].get(key)) for run in (a, b)))
        for step in comparison.common_steps
    }
    drawn = {step: value for step, value in far.items() if 0 < value < math.inf}
    apart.set_ylabel("difference")
    apart.set_xlabel("step")
    if drawn:
        apart.set_yscale("log")
        marks = [*drawn.values(), comparison.tolerance or min(drawn.values())]
        apart.set_ylim(min(marks) / 2, max(marks) * 2)  # before there are points: by itself it warns of a single one
        apart.plot(list(drawn), list(drawn.values()), ".", markersize=3)
        if comparison.tolerance > 0:
            apart.axhline(
                comparison.tolerance, color="grey", linewidth=0.8, label=f"tolerance {comparison.tolerance:g}"
            )
            apart.legend(fontsize="small")
    else:
        apart.text(0.5, 0.5, "no difference", ha="center", va="center", transform=apart.transAxes)
    if comparison.primary.diverges_at is not None:
        for axes in (curves, apart):
            axes.axvline(comparison.primary.diverges_at, color="tab:red", linewidth=0.8)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}). Name another file with --plot.") from error
