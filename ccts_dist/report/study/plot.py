"""The demo study's picture: valence of the students against the share of wrong transcripts."""

import io
import math

from ccts_dist.plotting import MODEL, OTHER, REJECTED, drawing, legend_above
from ccts_dist.report.paired_intervals import estimate
from ccts_dist.report.study.results import Results
from ccts_dist.report.study.tables import COMPARED, difference

STUDENTS = {"ts": ("T/S: every utterance distilled", OTHER, "o"), "cts": ("cT/S: on condition", MODEL, "s")}
APART = 0.5
"""The students' marks stand so many percent to each side of their share, so that bars do not hide each other."""


def draw_study(results: Results, percents: tuple[int, ...]) -> bytes:
    """Draw the students' CCC and their lead over speech only, both with 95 % intervals, as an SVG file.

    The left half has the spread over seeds in its intervals; the right half compares runs of one seed with each other.
    Equal results give equal bytes. On a white ground of its own, for pages that are dark.

    Args:
        results: of the runs that are there.
        percents: shares of wrong transcripts; the first is the one at which speech only was trained.
    """
    with drawing(width=9.0, height=3.6, page=False) as figure:
        reached, lead = figure.subplots(1, 2)
        alone = estimate(list(results.ccc(percents[0], "speech", COMPARED).values()))
        if alone is not None:
            reached.axhline(alone.mean, color=REJECTED, linestyle="--", label="speech only")
            if not math.isnan(alone.half_width):
                low, high = alone.mean - alone.half_width, alone.mean + alone.half_width
                reached.axhspan(low, high, color=REJECTED, alpha=0.15, linewidth=0)
        lead.axhline(0, color=REJECTED, linestyle="--")
        for system, (words, color, marker) in STUDENTS.items():
            shift = APART if system == "cts" else -APART
            style = {"color": color, "marker": marker, "markersize": 5, "capsize": 3, "linewidth": 1.2, "label": words}
            for axes in (reached, lead):
                points = []
                for percent in sorted(percents):
                    value = (
                        estimate(list(results.ccc(percent, system, COMPARED).values()))
                        if axes is reached
                        else difference(results, percent, system, "speech", COMPARED, first=percents[0])
                    )
                    if value is not None:
                        bar = 0.0 if math.isnan(value.half_width) else value.half_width
                        points.append((percent + shift, value.mean, bar))
                if points:
                    at, means, bars = zip(*points, strict=True)
                    axes.errorbar(at, means, yerr=bars, **style)
        for axes, words in ((reached, f"CCC of {COMPARED}, test"), (lead, "lead over speech only, same seed")):
            axes.set_xlabel("wrong transcripts, %")
            axes.set_ylabel(words)
            axes.set_xticks(sorted(percents))
        legend_above(figure, reached)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
