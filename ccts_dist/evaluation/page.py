"""An evaluation as one page that stands by itself; its text and form are in ``templates/``."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from ccts_dist.evaluation.extracts import Extract
from ccts_dist.evaluation.label_scale import on_scale, width_of
from ccts_dist.evaluation.plots import (
    Picture,
    draw_calibration,
    draw_curves,
    draw_intervals,
    draw_noise,
    draw_predictions,
    draw_residuals,
)
from ccts_dist.evaluation.run import Result, SplitResult
from ccts_dist.records import is_rating
from ccts_dist.report.recorded import metric_value
from ccts_dist.scoring import (
    MEAN,
    UAR,
    Difference,
    Interval,
    PredictionTable,
    TeacherColumns,
    concordances,
    confusion,
    few_speakers,
    in_bins,
    unweighted_accuracy,
)

_MOST_POINTS = 400
"""Most points of a curve; no screen shows more."""

_TERMS = {
    "CCC": "concordance correlation coefficient",
    "Pearson": "correlation, whatever mean and spread",
    "C_b": "what a shift and another spread leave of Pearson's correlation: CCC = Pearson x C_b",
    "Spearman": "correlation of ranks",
    "MAE": "mean absolute error, on the scale of ratings",
}
_CALIBRATION = {
    "slope": "of the labels' regression on the predictions: 1 where the model is calibrated",
    "shift": "mean of prediction minus label, on the scale of ratings: 0 where the model is calibrated",
}
_CEILINGS = {
    "one rater": "expected CCC of one rater with the mean of the others",
    "half of the raters": "expected CCC of the mean of half of the raters with the mean of the others",
    "noise ceiling": "expected CCC of a model that predicts what raters answer on average",
}
_SECTIONS = {
    "predictions": "Predictions",
    "classes": "Classes",
    "teacher": "A and the teacher",
    "words": "Words",
    "noise": "In noise",
    "rooms": "In rooms",
    "parts": "Parts",
    "speakers": "Speakers",
    "worst": "Worst utterances",
}
_GROUPS = {
    "gender": "Gender",
    "age": "Age",
    "duration": "Duration",
    "transcript": "Length of transcript",
    "sentiment": "Valence of words",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The parts of a page beside the figures of an evaluation."""

    worst: Mapping[str, tuple[Extract, ...]] = field(default_factory=dict)
    """By split, of the first model."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """How the page was made: date, command, versions."""

    run: str = ""
    """The run whose curves are drawn; "" for none."""

    steps: Mapping[int, Mapping[str, object]] = field(default_factory=dict)
    """Record of each step of training, by its number."""

    validations: Mapping[int, Mapping[str, object]] = field(default_factory=dict)


def make_page(result: Result, beside: Beside) -> str:
    """The page: the first model on each split, what it is compared with, and how it was trained; HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def stretched(interval: Interval, target: str) -> Interval:
        times = width_of(target, result.scale)
        return Interval(value=times * interval.value, low=times * interval.low, high=times * interval.high)

    environment = Environment(
        loader=PackageLoader("ccts_dist.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": lambda value, digits=3: f"{value:.{digits}f}" if isfinite(value) else "none",
        "signed": _signed,
        "base64": lambda data: base64.b64encode(data).decode(),
        "rating": lambda value, target: f"{on_scale(target, float(value), result.scale):.2f}",
        "wider": lambda value, target: width_of(target, result.scale) * value,
        "stretched": stretched,
    }
    first = result.models[0]
    return environment.get_template("report.html.jinja").render(
        title=f"Evaluation of {first.pulled.version or '/'.join(Path(first.name).absolute().parts[-2:])}",
        result=result,
        beside=beside,
        models=list(zip(_letters(), result.models, strict=False)),
        splits=[_view(result, number, beside) for number in range(len(first.splits))],
        terms=_TERMS,
        ceilings=_CEILINGS,
        calibration=_CALIBRATION,
        training=_of_training(beside) if beside.run else [],
    )


def _view(result: Result, number: int, beside: Beside) -> dict[str, Any]:
    """The page's view of a split."""
    own, anchor, scale = result.models[0].splits[number], f"s{number}", result.scale
    named = dict(list(zip(_letters(), result.models, strict=False))[1:])
    table, classes = own.table, list(_classes(own.table, result))
    rated = [one for one in own.metrics if one.num_labels]
    view: dict[str, Any] = {
        "own": own,
        "anchor": anchor,
        "warning": few_speakers(table.num_speakers),
        "cards": [{"title": f"CCC, {one.target}", "interval": one.ccc} for one in own.metrics]
        or [{"title": "Unweighted accuracy", "interval": one["uar"]} for one in classes],
        "predictions": [
            draw_predictions(f"{anchor}p{at}", own.split, table, one, scale) for at, one in enumerate(rated)
        ]
        + [draw_calibration(f"{anchor}c{at}", own.split, table, one.target, scale) for at, one in enumerate(rated)],
        "raters": {one.target: one for one in own.ceilings},
        "classes": classes,
        "rivals": [_rival(f"{anchor}v{letter}", letter, own, model.splits[number]) for letter, model in named.items()],
        "gap": [],
        "words": _words(own, {letter: model.splits[number] for letter, model in named.items()}),
        "noise": [draw_noise(f"{anchor}n{at}", own, one.target) for at, one in enumerate(rated) if own.in_noise],
        "parts": [_parts(f"{anchor}g{at}", own, at) for at in range(len(own.metrics))],
        "worst": beside.worst.get(own.split, ()),
        **_teacher(anchor, own, scale),
    }
    view["verdicts"] = [rival["verdict"] for rival in view["rivals"]]
    sections = {
        "predictions": own.metrics, "classes": classes, **{one["name"]: one for one in view["rivals"]},
        "teacher": view["gap"], "words": view["words"], "noise": view["noise"], "rooms": own.in_rooms,
        "parts": own.metrics,
        "speakers": own.speakers, "worst": view["worst"],
    }  # fmt: skip
    view["sections"] = [
        (f"{anchor}-{name}", _SECTIONS.get(name, f"A and {name}")) for name, one in sections.items() if one
    ]
    return view


def verdict(own: str, other: str, found: Sequence[Difference], split: str) -> str:
    """Better, worse or not distinguishable, by the mean over targets (the last of ``found``); in one sentence."""
    last = found[-1]
    what = {MEAN: "mean CCC", UAR: UAR}.get(last.target, f"CCC of {last.target}")
    figures = f"{what} {last.first:.3f} against {last.second:.3f}, difference {_signed(last.gain.value)}"
    if not last.gain.is_known:
        return f"{own} and {other} cannot be compared on {split} without an interval: {figures}."
    word = "better than" if last.gain.low > 0 else "worse than" if last.gain.high < 0 else "not distinguishable from"
    ends = f"{_signed(last.gain.low)} to {_signed(last.gain.high)}"
    return f"{own} is {word} {other} on {split}: {figures} ({ends})."


def _rival(name: str, letter: str, own: SplitResult, rival: SplitResult) -> dict[str, Any]:
    ours, theirs = ({one.target: one.ccc for one in split.metrics} for split in (own, rival))
    rows = [(one, {"A": ours[one], letter: theirs[one]}) for one in ours if one in theirs]
    caption = f"A and {letter}, with 95 % intervals"
    return {
        "name": letter,
        "rows": rival.gains,
        "verdict": verdict("A", letter, rival.gains, own.split),
        "by_sentiment": rival.sentiment_gains,
        "pictures": [draw_intervals(name, {"": rows}, f"CCC on {own.split}", caption)] if rows else [],
    }


def _words(own: SplitResult, rivals: Mapping[str, SplitResult]) -> list[dict[str, Any]]:
    """How lexical the first model and each of the others are, a row for each target."""
    changes = {letter: {one.target: one.gain for one in rival.lexical_changes} for letter, rival in rivals.items()}
    return [
        {
            "target": target,
            "own": found,
            "others": [
                (letter, rival.lexical.get(target), changes[letter].get(target)) for letter, rival in rivals.items()
            ],
        }
        for target, found in own.lexical.items()
    ]


def _teacher(anchor: str, own: SplitResult, scale: tuple[float, float]) -> dict[str, Any]:
    if own.table.teacher is None:
        return {}
    targets = [one.target for one in own.teacher_gap if one.target != MEAN]
    columns = [own.table.targets.index(target) for target in targets]
    theirs = concordances(own.table.teacher_sums()[:, :, columns])
    rows = [
        (target, {"A": own.metrics[column].ccc, "teacher": found})
        for target, column, found in zip(targets, columns, theirs, strict=True)
    ]
    what = f"CCC on {own.split}"
    return {
        "gate": gate_in_words(own.table.teacher),
        "gap": [_turned(one) for one in own.teacher_gap],
        "gap_picture": [draw_intervals(f"{anchor}t", {"": rows}, what, "A and the teacher, with 95 % intervals")],
        "residuals": [
            draw_residuals(f"{anchor}r{column}", own.split, own.table, target, scale)
            for target, column in zip(targets, columns, strict=True)
        ],
    }


def _turned(gap: Difference) -> Difference:
    """Second minus first."""
    gain = Interval(value=-gap.gain.value, low=-gap.gain.high, high=-gap.gain.low)
    return replace(gap, first=gap.second, second=gap.first, gain=gain)


def _parts(name: str, own: SplitResult, column: int) -> Picture:
    target = own.table.targets[column]
    groups = {
        heading: [(group.name, {"A": group.ccc[column]}) for group in own.groups if group.kind == kind]
        for kind, heading in _GROUPS.items()
        if any(group.kind == kind for group in own.groups)
    }
    ends = [end for group in own.groups for one in group.ccc for end in (one.value, one.low, one.high) if isfinite(end)]
    limits = (min(ends) - 0.02, max(ends) + 0.02) if ends else None
    whole = own.metrics[column].ccc.value
    caption = f"{target} by part of {own.split}; dotted: all of it"
    return draw_intervals(name, groups, "CCC, 95 %", caption, limits=limits, whole=whole if isfinite(whole) else None)


def _classes(table: PredictionTable, result: Result) -> Iterator[dict[str, Any]]:
    """The categories of the model, and each rating in bins where those were asked for."""
    if table.known_categories and any(one in table.known_categories for one in table.categories):
        yield _class_figures("categories", table)
    low, high = result.scale
    ends = (low, *result.bins, high)
    names = [f"{left:g} to {right:g}" for left, right in pairwise(ends)]
    edges = [(edge - low) / (high - low) for edge in result.bins]
    for target in table.targets if edges else ():
        if is_rating(target):
            yield _class_figures(f"{target} in bins", in_bins(table, target, edges, names))


def _class_figures(title: str, table: PredictionTable) -> dict[str, Any]:
    counts = confusion(table)
    rows = counts.by_class()
    return {
        "title": title,
        "uar": unweighted_accuracy(table),
        "accuracy": counts.weighted_accuracy(),
        "f1": counts.macro_f1(),
        "rows": rows,
        "num": int(sum(map(sum, rows.values()))),
    }


def gate_in_words(teacher: TeacherColumns) -> str:
    """The gate, whose it is, and what of the split passes."""
    whose = (
        "of this model's run" if teacher.gate.of_run else "the default, since no distillation of this model is known"
    )
    passed = "predictions" if teacher.gate_mask.ndim == 2 else "utterances"
    counted = "on average as a share" if teacher.gate.name == "soft" else "pass"
    return f"Gate: {teacher.gate.in_words()} ({whose}). {teacher.gate_mask.mean():.1%} of the {passed} {counted}."


def _of_training(beside: Beside) -> list[Picture]:
    panels = (
        ("train/loss", beside.steps, "training loss"),
        ("valid/loss", beside.validations, "validation loss"),
        ("valid/ccc_", beside.validations, "CCC on validation"),
    )
    drawn = [(f"t{number}", _curves(begins, rows), what) for number, (begins, rows, what) in enumerate(panels)]
    return [draw_curves(name, curves, what) for name, curves, what in drawn if curves]


def _curves(begins: str, rows: Mapping[int, Mapping[str, object]]) -> dict[str, tuple[list[float], list[float]]]:
    """The figures whose names begin so, where they are numbers."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for step, row in rows.items():
        for key, value in row.items():
            if key.startswith(begins) and isfinite(metric_value(value)):
                steps, values = curves.setdefault(key.removeprefix(begins).strip("_") or "loss", ([], []))
                steps.append(float(step))
                values.append(metric_value(value))
    return {name: (_thinned(steps), _thinned(values)) for name, (steps, values) in curves.items()}


def _thinned(values: list[float]) -> list[float]:
    """Means of so many neighbours that few enough points are left."""
    each = -(-len(values) // _MOST_POINTS)
    return [sum(some) / len(some) for some in (values[at : at + each] for at in range(0, len(values), each))]


def _letters() -> Iterator[str]:
    """A, B, ... Z, then A1, B1, ..."""
    for round_ in range(1_000):
        yield from (f"{chr(ord('A') + number)}{round_ or ''}" for number in range(26))


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212") if isfinite(value) else "none"
