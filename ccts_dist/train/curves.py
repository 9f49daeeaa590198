"""The curves of one training, out of its run folder."""

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ccts_dist.config.renamed import with_present_metrics
from ccts_dist.plotting import MODEL, OTHER, REJECTED, TEACHER, color_of, drawing, span_decades
from ccts_dist.train.resilience.storage_errors import writing

NAME = "curves.png"

_LOSS = "Loss"

_PANELS = (
    (_LOSS, ("train/loss", "valid/loss"), True),
    ("Terms of the loss", ("train/loss_",), True),
    ("CCC, training batches", ("train/ccc_",), False),
    ("CCC, validation", ("valid/ccc_",), False),
    ("Unweighted accuracy, validation", ("valid/uar",), False),
    ("Fraction distilled", ("train/kept_share", "distill/fraction"), False),
    ("Norm of the gradient", ("train/gradient_norm", "train/grad_norm"), True),
    ("Learning rate", ("train/learning_rate_", "train/lr_"), False),
)
"""Title of each panel, what is drawn in it, and whether its axis may be logarithmic. A name that ends in ``_`` stands
for all that begin so."""

_EXACT = "Learning rate"
_COLORS = {"train/loss": MODEL, "valid/loss": OTHER}
_OTHERS = (MODEL, TEACHER, OTHER, REJECTED)
_SHORT = re.compile(r"^(train|valid|distill)/(loss$|(ccc|loss|learning_rate|lr)_)?")
_MOST_POINTS = 2_000
"""Most points of a curve: more cannot be seen."""

_SPANS = 40
"""A smoothed curve averages over this part of the steps."""


def draw_training(folder: Path) -> Path:
    """Draw losses, CCC, distilled fraction, gradient norm and learning rates by step: ``curves.png`` of a run folder.

    A figure of every step is drawn twice: as it was measured, faintly, and smoothed.

    Raises:
        OutputError: the histories cannot be read, or the picture cannot be written.
    """
    path = folder / NAME
    with writing(path):
        steps, validations = (_read(folder / name) for name in ("history.jsonl", "validations.jsonl"))
        curves = {name: curve for rows in (steps, validations) for name, curve in curves_of(rows).items()}
        panels = [(title, _wanted(curves, names), log) for title, names, log in _PANELS]
        if "train/loss_embedding" in curves:
            panels[0] = (f"{_LOSS}; validation has no distillation", *panels[0][1:])
        panels = [panel for panel in panels if panel[1]] or [("no step was taken", {}, False)]
        num_rows = -(-len(panels) // 2)
        with drawing(width=10.0, height=0.5 + 2.3 * num_rows, page=False) as figure:
            places = figure.subplots(num_rows, 2, sharex=True, squeeze=False).flatten()
            for axes, (title, own, log) in zip(places, panels, strict=False):
                _draw_panel(axes, title, own, log=log)
            for axes in places[len(panels) :]:
                axes.remove()
            for axes in places[max(0, len(panels) - 2) : len(panels)]:
                axes.tick_params(labelbottom=True)
            figure.supxlabel("step", fontsize="medium")
            figure.savefig(path, dpi=110)
    return path


def _draw_panel(axes: Any, title: str, curves: Mapping[str, tuple[list[int], list[float]]], *, log: bool) -> None:
    axes.set_title(title)
    log = log and span_decades(value for _, values in curves.values() for value in values)
    for number, (name, (at, values)) in enumerate(curves.items()):
        label = _SHORT.sub("", name)
        color = _COLORS.get(name) or (color_of(label, number) if "ccc_" in name else _OTHERS[number % len(_OTHERS)])
        if name.startswith("valid/"):
            axes.plot(at, values, color=color, label=label or "validation", marker="o", markersize=3)
        elif title == _EXACT:
            axes.plot(at, values, color=color, label=label, linestyle="-:"[number % 2])
        else:
            axes.plot(at, values, color=color, alpha=0.25, linewidth=0.7, marker="." if len(at) < 3 else "")
            width = max(1, len(values) // _SPANS)
            # On a logarithmic axis the mean is that of the logarithms: one large value would lift all around it.
            smooth = np.exp(smoothed(np.log(values), width)) if log else smoothed(values, width)
            axes.plot(at, smooth, color=color, label=label or "training")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    if len(curves) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=len(curves), borderpad=0, columnspacing=1.0)


def smoothed(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """Centred moving average over ``width`` values, one more where that is even, and fewer at the ends."""
    window = np.ones(2 * (width // 2) + 1)
    return (
        np.convolve(values, window)[width // 2 :][: len(values)]
        / (np.convolve(np.ones(len(values)), window)[width // 2 :][: len(values)])
    )


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every figure that is a finite number, thinned out evenly where there are very many."""
    thin = rows[:: -(-len(rows) // _MOST_POINTS)] if rows else rows
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in thin:
        for name, value in row.items():
            if isinstance(value, float) and isfinite(value):
                at, values = curves.setdefault(name, ([], []))
                at.append(row["step"])
                values.append(value)
    return curves


def _wanted(
    curves: Mapping[str, tuple[list[int], list[float]]], names: Sequence[str]
) -> dict[str, tuple[list[int], list[float]]]:
    return {
        name: curve
        for name, curve in curves.items()
        if any(name == one or (one.endswith("_") and name.startswith(one)) for one in names)
    }


def _read(path: Path) -> list[dict[str, Any]]:
    return [with_present_metrics(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
