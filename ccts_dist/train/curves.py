"""The curves of one training, out of its run folder."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from ccts_dist.config.renamed import with_present_metrics
from ccts_dist.train.resilience.storage_errors import writing

NAME = "curves.png"

_PANELS = (
    ("loss", ("train/loss", "valid/loss", "train/loss_ccc", "train/loss_embedding", "train/loss_prediction")),
    ("CCC, training batches", ("train/ccc_",)),
    ("CCC, or unweighted accuracy, validation", ("valid/ccc_", "valid/uar")),
    ("share distilled, and gradient norm", ("distill/fraction", "train/grad_norm")),
    ("learning rate", ("train/lr_",)),
)
"""What is drawn together; a name that ends in ``_`` stands for all that begin so."""

_MOST_POINTS = 2_000
"""Of a curve: more cannot be seen."""


def draw_training(folder: Path) -> Path:
    """Draw losses, CCC, gate, gradient norm and learning rates by step into ``curves.png`` of a run folder.

    Raises:
        OutputError: the histories cannot be read, or the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only pictures need it
    from matplotlib.figure import Figure

    path = folder / NAME
    with writing(path):
        steps, validations = (_read(folder / name) for name in ("history.jsonl", "validations.jsonl"))
        curves = {name: curve for rows in (steps, validations) for name, curve in curves_of(rows).items()}
        figure = Figure(figsize=(8, 2.2 * len(_PANELS)), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, wanted) in zip(figure.subplots(len(_PANELS), 1, sharex=True), _PANELS, strict=True):
            axes.set_title(title, fontsize="small", loc="left")
            for name, (at, values) in curves.items():
                if any(name == one or (one.endswith("_") and name.startswith(one)) for one in wanted):
                    marker = "." if len(at) < 30 else ""
                    axes.plot(at, values, label=name, linewidth=1.0, marker=marker)
            if axes.lines:
                axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.supxlabel("step", fontsize="small")
        figure.savefig(path, dpi=100)
    return path


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


def _read(path: Path) -> list[dict[str, Any]]:
    return [with_present_metrics(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
