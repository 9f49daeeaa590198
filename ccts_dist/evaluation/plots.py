"""The pictures of an evaluation, each as ``<svg>`` with the words below it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccts_dist.evaluation.label_scale import ends_of, on_scale, width_of
from ccts_dist.evaluation.run import SplitResult
from ccts_dist.plotting import (
    INTERVAL,
    MODEL,
    OTHER,
    REJECTED,
    TEACHER,
    color_of,
    drawing,
    legend_above,
    scale_ticks,
    span_decades,
    to_svg,
)
from ccts_dist.scoring import Interval, PredictionTable, TargetMetrics, calibration_bins
from ccts_dist.train.curves import smoothed

Picture = tuple[str, str]
"""SVG, and caption."""

_SERIES = {"A": (MODEL, "o"), "teacher": (TEACHER, "D")}
"""Colour and mark of each, in every picture; of all others those of ``_RIVAL``."""

_RIVAL = (OTHER, "s")

_TERMS = {"ccc": MODEL, "embedding": TEACHER, "prediction": OTHER}
"""Colours of the terms of a loss, as in ``curves.png``."""

_FEWEST_BINS, _MOST_BINS = 10, 60
_CELLS = 22
_LINES = ("-", "--", "-.", ":")


def draw_predictions(
    name: str, split: str, table: PredictionTable, figures: TargetMetrics, scale: tuple[float, float]
) -> Picture:
    """Density of predictions and labels of one target on equal axes, with the line where they are equal."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    place = table.targets.index(figures.target)
    labels, predictions = (
        on_scale(figures.target, values[:, place], scale) for values in (table.labels, table.predictions)
    )
    there, most = np.isfinite(labels) & np.isfinite(predictions), 0
    low, high = ends_of(figures.target, scale)
    predictions = np.clip(predictions, low, high)
    with drawing(name, height=3.6) as figure:
        axes = _square(figure, low, high)
        if there.any():
            # Transparent where there is little: the page's own ground, light or dark.
            shades = LinearSegmentedColormap.from_list("density", [(*to_rgb(MODEL), 0.15), (*to_rgb(MODEL), 1.0)])
            ends = axes.get_xlim()
            cells = axes.hexbin(
                labels[there], predictions[there], gridsize=_CELLS, extent=(*ends, *ends), mincnt=1, cmap=shades,
                linewidths=0, rasterized=True,
            )  # fmt: skip
            most = int(cells.get_array().max())
        axes.set_xlabel("label")
        axes.set_ylabel("prediction")
        words = (
            f"{figures.target} on {split}: density of {figures.num_labels} labels and predictions, at most "
            f"{most} in a cell, and the line on which they would be equal. CCC {in_words(figures.ccc)}."
        )
        return to_svg(figure, name, words), f"{figures.target}: predictions and labels, up to {most} in a cell"


def draw_calibration(name: str, split: str, table: PredictionTable, target: str, scale: tuple[float, float]) -> Picture:
    """Mean label by quantile of the prediction, with intervals, and the line of a calibrated model."""
    bins = calibration_bins(table, target)
    width = width_of(target, scale)
    at = [on_scale(target, one.prediction, scale) for one in bins]
    means = [on_scale(target, one.label.value, scale) for one in bins]
    with drawing(name, height=3.6) as figure:
        axes = _square(figure, *ends_of(target, scale))
        bars = np.array([_bar(one.label) for one in bins]).reshape(-1, 2).T * width
        axes.errorbar(at, means, yerr=bars, fmt="o", color=MODEL, **INTERVAL)
        axes.set_xlabel("mean prediction")
        axes.set_ylabel("mean label")
        each = "; ".join(f"{label:.2f} at {prediction:.2f}" for prediction, label in zip(at, means, strict=True))
        words = f"Calibration of {target} on {split}: mean label by mean prediction of {len(bins)} bins: {each}."
        return to_svg(figure, name, words), f"{target}: mean label of similar predictions"


def draw_intervals(
    name: str, groups: Mapping[str, Sequence[tuple[str, Mapping[str, Interval]]]], what: str, caption: str, *,
    limits: tuple[float, float] | None = None, whole: float | None = None,
) -> Picture:  # fmt: skip
    """Figures with their intervals, one below the other under headings, series side by side.

    Args:
        groups: by heading ("" for none), of each row its name, and each model's figure.
        what: the figure, for the axis.
        caption: below the picture.
        limits: of the axis; None for those of the figures.
        whole: the figure of all rows together, as a line.
    """
    ticks, words, named, y = [], [], set[str](), 0.0
    series = dict.fromkeys(one for rows in groups.values() for _, found in rows for one in found)
    with drawing(
        name, height=0.75 + 0.26 * sum(bool(heading) + len(rows) for heading, rows in groups.items())
    ) as figure:
        axes = figure.subplots()
        for heading, rows in groups.items():
            if heading:
                axes.annotate(
                    heading, (0, y), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points",
                    ha="right", va="center", fontweight="bold", fontsize="small",
                )  # fmt: skip
                y += 1
            for row, found in rows:
                ticks.append((y, row))
                for number, one in enumerate(series):
                    if one in found and np.isfinite(found[one].value):
                        color, mark = _SERIES.get(one, _RIVAL)
                        shift = 0.24 * (number - (len(series) - 1) / 2)
                        axes.errorbar(found[one].value, y + shift, xerr=np.array([_bar(found[one])]).T, fmt=mark,
                                      color=color, **INTERVAL, label=None if one in named else one)  # fmt: skip
                        named.add(one)
                words.append(f"{row} " + " against ".join(f"{one.value:.3f}" for one in found.values()))
                y += 1
        axes.set_yticks([at for at, _ in ticks], [row for _, row in ticks], fontsize="small")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(y - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(what)
        axes.set_xlim(limits)
        if whole is not None:
            axes.axvline(whole, color=MODEL, linewidth=1, linestyle=":")
        if len(series) > 1:
            legend_above(figure, axes)
        return to_svg(figure, name, f"{caption}. {what} of {', '.join(series)}: {'; '.join(words)}."), caption


def draw_residuals(name: str, split: str, table: PredictionTable, target: str, scale: tuple[float, float]) -> Picture:
    """Histogram of the residuals of the teacher's fit, of utterances that the gate accepts and of those it rejects."""
    assert table.teacher is not None
    place, width = table.targets.index(target), width_of(target, scale)
    residual, widest = width * table.teacher.residual[:, place], width * table.teacher.widest[place]
    accepted = table.teacher.gate_mask[:, place] if table.teacher.gate_mask.ndim == 2 else table.teacher.gate_mask > 0
    there = np.isfinite(residual)
    num_bins = int(np.clip(there.sum() ** 0.5, _FEWEST_BINS, _MOST_BINS))
    edges = np.histogram_bin_edges(residual[there], bins=num_bins)
    rejected = int((there & ~accepted).sum())
    with drawing(name) as figure:
        axes = figure.subplots()
        parts = [residual[there & accepted], residual[there & ~accepted]]
        axes.hist(parts, edges, stacked=True, label=["accepted", "rejected"], color=[TEACHER, REJECTED])
        for side in () if np.isnan(widest) else (-widest, widest):
            axes.axvline(side, color=TEACHER, linestyle="--", linewidth=1, label="threshold" if side > 0 else None)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("residual, on the scale of ratings")
        axes.set_ylabel("utterances")
        legend_above(figure, axes)
        words = (
            f"{target} on {split}: residuals of the teacher's fit; {rejected} of {int(there.sum())} utterances are "
            f"rejected by the gate ({table.teacher.gate.in_words()})"
            + ("." if np.isnan(widest) else f", whose threshold for {target} is {widest:.3f} to both sides.")
        )
        return to_svg(figure, name, words), f"{target}: residuals of the teacher, and its gate"


def draw_noise(name: str, split: SplitResult, target: str) -> Picture:
    """CCC of one target by signal-to-noise ratio, a line for each noise, and without noise."""
    place = split.table.targets.index(target)
    clean = split.metrics[place].ccc
    words = []
    ratios = sorted({one.snr_db for one in split.in_noise})
    step = 0.02 * (ratios[-1] - ratios[0])
    figures = [*(one.ccc for one in split.metrics), *(one for noise in split.in_noise for one in noise.ccc)]
    ends = [end for one in figures for end in (one.value, one.low, one.high) if np.isfinite(end)] or [0.0, 1.0]
    with drawing(name) as figure:
        axes = figure.subplots()
        axes.axhline(clean.value, linestyle=":", linewidth=1, color=MODEL, label="without noise")
        for number, noise in enumerate(dict.fromkeys(one.noise for one in split.in_noise)):
            own = sorted((one.snr_db, one.ccc[place]) for one in split.in_noise if one.noise == noise)
            axes.errorbar(
                [ratio + step * (number - 1) for ratio, _ in own], [one.value for _, one in own],
                yerr=np.array([_bar(one) for _, one in own]).T, color=MODEL, alpha=max(0.45, 1 - 0.25 * number),
                marker="os^Dv"[number % 5], **INTERVAL | {"linestyle": _LINES[number % 4]}, label=_short(noise),
            )  # fmt: skip
            words.append(f"{_short(noise)} {', '.join(f'{one.value:.3f} at {ratio:g} dB' for ratio, one in own)}")
        axes.set_xticks(ratios)
        axes.set_ylim(min(ends) - 0.03, max(ends) + 0.03)  # one scale for all targets
        axes.set_xlabel("signal-to-noise ratio, dB")
        axes.set_ylabel("CCC, 95 %")
        legend_above(figure, axes, columns=2)
        alternative = f"CCC of {target} in noise on {split.split}: {'; '.join(words)}; without {clean.value:.3f}."
        return to_svg(figure, name, alternative), f"{target}: CCC by signal-to-noise ratio"


def draw_curves(name: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], what: str) -> Picture:
    """Figures of a run by step; those of many steps faintly as they were measured, and smoothed.

    Args:
        curves: by the name of each: steps and values; there is one at least.
        what: what they are, for the axis.
    """
    with drawing(name) as figure:
        axes = figure.subplots()
        log = "loss" in what and span_decades(value for _, values in curves.values() for value in values)
        for number, (label, (steps, values)) in enumerate(curves.items()):
            own = _TERMS.get(label, REJECTED if len(curves) > 1 else MODEL)
            color = color_of(label, number) if "CCC" in what else own
            few = len(steps) < 40
            if not few:
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
                width = len(values) // 40
                # On a logarithmic axis the mean is that of the logarithms: one large value would lift all around it.
                values = np.exp(smoothed(np.log(values), width)) if log else smoothed(values, width)
            axes.plot(steps, values, color=color, marker="." if few else "", linewidth=1.2, label=label)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("step")
        axes.set_ylabel(what)
        legend_above(figure, axes)
        ends = "; ".join(f"{label} from {values[0]:.3f} to {values[-1]:.3f}" for label, (_, values) in curves.items())
        return to_svg(figure, name, f"{what} by step of training: {ends}."), f"{what} by step"


def in_words(interval: Interval) -> str:
    """A figure with its interval."""
    if not interval.is_known:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _square(figure: Any, low: float, high: float) -> Any:
    """Equal axes over the whole scale, and the line where both are equal."""
    room = 0.04 * (high - low)
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.axline((low, low), (high, high), color=REJECTED, linewidth=1, linestyle="--")
    ticks = scale_ticks(low, high)
    axes.set(xticks=ticks, yticks=ticks, xlim=(low - room, high + room), ylim=(low - room, high + room))
    return axes


def _short(noise: str) -> str:
    """A generated noise's name, or the folder's."""
    return noise.rstrip("/").rpartition("/")[2]


def _bar(interval: Interval) -> tuple[float, float]:
    """How far the interval reaches below and above its figure; 0 without an interval."""
    if not interval.is_known:
        return 0.0, 0.0
    return max(0.0, interval.value - interval.low), max(0.0, interval.high - interval.value)
