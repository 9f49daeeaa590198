"""The pictures of an evaluation, each as ``<svg>`` with the words below it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ccts_dist.evaluation.label_scale import ends_of, on_scale
from ccts_dist.evaluation.run import SplitResult
from ccts_dist.report.plotting import COLOURS, drawing, to_svg
from ccts_dist.scoring import Interval, PredictionTable, TargetFigures

Picture = tuple[str, str]
"""SVG, and caption."""

_FEWEST_BINS, _MOST_BINS = 10, 60


def draw_predictions(
    name: str, split: str, table: PredictionTable, figures: TargetFigures, scale: tuple[float, float]
) -> Picture:
    """Predictions against labels of one target, on the scale of the ratings, with the line where they are equal."""
    low, high = ends_of(figures.target, scale)
    place = table.targets.index(figures.target)
    labels, predictions = (
        on_scale(figures.target, values[:, place], scale) for values in (table.labels, table.predictions)
    )
    with drawing(name) as figure:
        axes = figure.subplots()
        # As an image within the picture: ten thousand marks would be a megabyte of text.
        axes.plot(
            labels, predictions, "o", markersize=3, alpha=min(0.7, 60 / len(table) ** 0.5 / 2), rasterized=True,
            markeredgewidth=0,
        )  # fmt: skip
        axes.axline((low, low), (high, high), color=COLOURS[1], linewidth=1)
        axes.set_xlim(low, high)
        bottom, top = np.nanmin([low, *predictions]), np.nanmax([high, *predictions])
        if np.isfinite([bottom, top]).all():
            axes.set_ylim(bottom, top)
        axes.set_xlabel("label")
        axes.set_ylabel("prediction")
        axes.grid()
        words = (
            f"{figures.target} on {split}: each of {figures.num_labels} predictions against its label, "
            f"and the line on which they would be equal. CCC {in_words(figures.ccc)}."
        )
        return to_svg(figure, name, words), f"{figures.target}: prediction against label"


def draw_residuals(name: str, split: str, table: PredictionTable, target: str) -> Picture:
    """How far the teacher's fit is off a target's labels, of utterances that pass the gate and of those that do not."""
    assert table.teacher is not None
    place = table.targets.index(target)
    residual, widest = table.teacher.residual[:, place], table.teacher.widest[place]
    gate_mask = table.teacher.gate_mask[:, place] if table.teacher.gate_mask.ndim == 2 else table.teacher.gate_mask > 0
    there = ~np.isnan(residual)
    edges = np.histogram_bin_edges(residual[there], bins=int(np.clip(there.sum() ** 0.5, _FEWEST_BINS, _MOST_BINS)))
    num_rejected = int((there & ~gate_mask).sum())
    with drawing(name) as figure:
        axes = figure.subplots()
        parts = [residual[there & gate_mask], residual[there & ~gate_mask]]
        axes.hist(parts, edges, stacked=True, label=["passes the gate", "rejected"], color=COLOURS[:2])
        axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
        for side in () if np.isnan(widest) else (-widest, widest):
            axes.axvline(side, color=COLOURS[1], linestyle="--", linewidth=1)
        axes.set_xlabel("residual, 0..1")
        axes.set_ylabel("utterances")
        axes.legend(fontsize="small")
        words = (
            f"{target} on {split}: residuals of the teacher's fit; {num_rejected} of {int(there.sum())} utterances are "
            f"left out by the gate ({table.teacher.gate.in_words()})"
            + ("." if np.isnan(widest) else f", which for {target} lies at {widest:.3f} to both sides.")
        )
        return to_svg(figure, name, words), f"{target}: residuals of the teacher, and the gate"


def draw_gap(name: str, split: SplitResult, teacher: Sequence[Interval], targets: Sequence[str]) -> Picture:
    """CCC of the model and of its teacher, target by target, with intervals."""
    ours = {one.target: one.ccc for one in split.metrics}
    with drawing(name) as figure:
        axes = figure.subplots()
        rows = np.arange(len(targets))
        for shift, found, label in (
            (-0.12, [ours[target] for target in targets], "model"), (0.12, teacher, "teacher"),
        ):  # fmt: skip
            _bars(axes, [one.value for one in found], (rows + shift).tolist(), found, label, vertical=False)
        axes.set_yticks(rows, targets)
        axes.set_ylim(len(targets) - 0.5, -0.5)
        axes.set_xlabel(f"CCC on {split.split}, 95 %")
        axes.legend(fontsize="small")
        axes.grid(axis="x")
        each = "; ".join(
            f"{target} {ours[target].value:.3f} against {one.value:.3f}"
            for target, one in zip(targets, teacher, strict=True)
        )
        return to_svg(figure, name, f"CCC on {split.split} of the model against its teacher's: {each}."), (
            "Gap to the teacher"
        )


def draw_noise(name: str, split: SplitResult, target: str) -> Picture:
    """CCC of one target by signal-to-noise ratio, a line for each noise, and without noise."""
    place = split.table.targets.index(target)
    clean = split.metrics[place].ccc
    words = []
    with drawing(name) as figure:
        axes = figure.subplots()
        axes.axhline(clean.value, linestyle="--", linewidth=1, color=COLOURS[-1], label="without noise")
        for noise in dict.fromkeys(one.noise for one in split.in_noise):
            own = sorted((one.snr_db, one.ccc[place]) for one in split.in_noise if one.noise == noise)
            ratios, found = zip(*own, strict=True)
            _bars(axes, ratios, [one.value for one in found], found, _short(noise), vertical=True, line="-")
            words.append(f"{_short(noise)} {', '.join(f'{one.value:.3f} at {ratio:g} dB' for ratio, one in own)}")
        axes.set_xticks(sorted({one.snr_db for one in split.in_noise}))
        axes.set_xlabel("signal-to-noise ratio, dB")
        axes.set_ylabel("CCC, 95 %")
        axes.legend(fontsize="small")
        axes.grid()
        alternative = f"CCC of {target} in noise on {split.split}: {'; '.join(words)}; without {clean.value:.3f}."
        return to_svg(figure, name, alternative), f"{target}: CCC by signal-to-noise ratio"


def draw_curves(name: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], what: str) -> Picture:
    """Figures of a run by step.

    Args:
        curves: by the name of each: steps and values; there is one at least.
        what: what they are, for the axis.
    """
    with drawing(name) as figure:
        axes = figure.subplots()
        for label, (steps, values) in curves.items():
            axes.plot(steps, values, marker="." if len(steps) < 40 else "", linewidth=1.2, label=label)
        axes.set_xlabel("step")
        axes.set_ylabel(what)
        axes.legend(fontsize="small")
        axes.grid()
        ends = "; ".join(f"{label} from {values[0]:.3f} to {values[-1]:.3f}" for label, (_, values) in curves.items())
        return to_svg(figure, name, f"{what} by step of training: {ends}."), f"{what} while training"


def in_words(interval: Interval) -> str:
    """A figure with its interval."""
    if not interval.is_known:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _short(noise: str) -> str:
    """A generated noise's name, or the folder's."""
    return noise.rstrip("/").rpartition("/")[2]


def _bars(
    axes: Any, x: Sequence[float], y: Sequence[float], found: Sequence[Interval], label: str, *, vertical: bool,
    line: str = "",
) -> None:  # fmt: skip
    """Marks with their intervals; a figure without one is a mark alone."""
    ends = np.array(
        [(max(0, one.value - one.low), max(0, one.high - one.value)) if one.is_known else (0, 0) for one in found]
    ).T
    axes.errorbar(x, y, **{"yerr" if vertical else "xerr": ends}, fmt=f"o{line}", markersize=4, capsize=2, label=label)
