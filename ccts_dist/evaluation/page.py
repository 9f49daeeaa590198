"""An evaluation as one page that stands by itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from ccts_dist.evaluation.extracts import Extract
from ccts_dist.evaluation.label_scale import on_scale
from ccts_dist.evaluation.pictures import (
    draw_curves,
    draw_gap,
    draw_noise,
    draw_predictions,
    draw_residuals,
)
from ccts_dist.evaluation.run import ModelResult, Result, SplitResult
from ccts_dist.report.html import Cell, Markup, heading, page, paragraph, pictures, player, table, with_small
from ccts_dist.report.recorded import metric_value
from ccts_dist.report.score_tables import categories_to_rows
from ccts_dist.scoring import (
    MEAN,
    Difference,
    Interval,
    TeacherColumns,
    concordances,
    few_speakers,
    unweighted_accuracy,
)

_MOST_SPEAKERS = 10

_MOST_POINTS = 400
"""Of a curve, which is wider than any screen's picture of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a page has beside the figures of an evaluation."""

    worst: Mapping[str, tuple[Extract, ...]] = field(default_factory=dict)
    """By split, of the first model."""

    run: str = ""
    """The run whose curves are drawn; "" for none."""

    steps: Mapping[int, Mapping[str, object]] = field(default_factory=dict)
    """What was written of each step of training, by its number."""

    validations: Mapping[int, Mapping[str, object]] = field(default_factory=dict)


def make_page(result: Result, beside: Beside) -> str:
    """The page: the first model on each split, what it is compared with, and how it was trained; HTML."""
    first, *others = result.models
    title = f"Evaluation of {first.pulled.version or first.name}"
    parts = [heading(title, 1), _facts(result)]
    for number, split in enumerate(first.splits):
        rivals = [(model, model.splits[number]) for model in others]
        parts += _of_split(f"s{number}", first, split, rivals, result.scale)
        parts += _of_utterances(split, beside.worst.get(split.split, ()), result.scale)
    if beside.run:
        parts += _of_training(beside)
    return page(title, parts)


def _facts(result: Result) -> Markup:
    models = ", ".join(
        f"{model.pulled.version or model.name} (weights {model.weights_sha256[:12]})" for model in result.models
    )
    low, high = result.scale
    return paragraph(
        f"Models: {models}. Shard set {result.shards_digest[:12]}, rated {low:g} to {high:g}. Intervals are 95 %, from "
        "speakers drawn with replacement; utterances of unknown speakers are drawn one by one."
    )


def _of_split(
    name: str, model: ModelResult, split: SplitResult, rivals: Sequence[tuple[ModelResult, SplitResult]],
    scale: tuple[float, float],
) -> Iterator[Markup]:  # fmt: skip
    table_, num_speakers = split.table, split.table.num_speakers
    yield heading(split.split)
    yield paragraph(f"{len(table_)} utterances, {num_speakers} speakers.")
    if words := few_speakers(num_speakers):
        yield paragraph(words, note=True)
    if not table_.targets:
        yield from _of_categories(split, rivals, model)
        return
    yield table(f"How good the predictions are, {split.split}",
        ("target", "CCC", "Pearson", "C_b", "Spearman", "mean error, 0..1", "labels"),
        [
            (one.target, *map(_cell, (one.ccc, one.pearson, one.bias)), f"{one.spearman:.3f}", _cell(one.mae),
             one.num_labels)
            for one in split.metrics
        ],
    )  # fmt: skip
    yield pictures([
        draw_predictions(f"{name}p{number}", split.split, table_, one, scale)
        for number, one in enumerate(split.metrics) if one.num_labels
    ])  # fmt: skip
    for rival, of_rival in rivals:
        yield table(
            f"{model.name} less {rival.name}, {split.split}",
            ("target", "this", "other", "gain"),
            [_gain(one) for one in of_rival.gains],
        )
    yield from _of_teacher(name, split)
    if split.in_noise:
        yield heading("In noise", 3)
        yield pictures([
            draw_noise(f"{name}n{number}", split, one.target)
            for number, one in enumerate(split.metrics) if one.num_labels
        ])  # fmt: skip
    yield heading("Parts", 3)
    yield table(f"CCC by gender, duration and length of the transcript, {split.split}",
        ("part", *table_.targets, "utterances", "speakers"),
        [
            (group.name, *map(_cell, group.ccc), group.num_utterances, group.num_speakers) for group in split.groups
        ],
    )  # fmt: skip
    if split.speakers:
        yield table(f"Speakers whose CCC is lowest, and how far predictions lie above their labels, {split.split}",
            ("speaker", *table_.targets, "utterances"),
            [
                (one.speaker, *(with_small(f"{ccc:.3f}", f"{shift:+.3f}")
                 for ccc, shift in zip(one.ccc, one.shift, strict=True)), one.num_utterances)
                for one in split.speakers[:_MOST_SPEAKERS]
            ],
            long=(0,),
        )  # fmt: skip


def _of_categories(
    split: SplitResult, rivals: Sequence[tuple[ModelResult, SplitResult]], model: ModelResult
) -> Iterator[Markup]:
    """Of a model without targets."""
    found = unweighted_accuracy(split.table)
    yield table(f"How well categories are distinguished, {split.split}", ("", "unweighted accuracy"),
                [(model.name, _cell(found))])  # fmt: skip
    yield table(f"Recall by category, {split.split}", ("category", "recall", "utterances"),
                categories_to_rows(split.scores))  # fmt: skip
    for rival, of_rival in rivals:
        yield table(f"{model.name} less {rival.name}, {split.split}", ("", "this", "other", "gain"),
                    [_gain(one) for one in of_rival.gains])  # fmt: skip


def gate_in_words(teacher: TeacherColumns) -> str:
    """The gate, whose it is, and what of the split passes."""
    whose = (
        "of this model's run" if teacher.gate.of_run else "the default, since no distillation of this model is known"
    )
    passed = "predictions" if teacher.gate_mask.ndim == 2 else "utterances"
    counted = "on average as a share" if teacher.gate.name == "soft" else "pass"
    return f"Gate: {teacher.gate.in_words()} ({whose}). {teacher.gate_mask.mean():.1%} of the {passed} {counted}."


def _of_teacher(name: str, split: SplitResult) -> Iterator[Markup]:
    teacher = split.table.teacher
    if teacher is None:
        return
    targets = [one.target for one in split.teacher_gap if one.target != MEAN]
    columns = [split.table.targets.index(target) for target in targets]
    found = concordances(split.table.teacher_sums()[:, :, columns])
    yield heading("Beside the teacher", 3)
    yield paragraph(gate_in_words(teacher))
    yield table(
        f"The teacher less this model, {split.split}",
        ("target", "teacher", "model", "gap"),
        [_gain(one) for one in split.teacher_gap],
    )
    drawn = [draw_gap(f"{name}g", split, found, targets)]
    drawn += [draw_residuals(f"{name}r{column}", split.split, split.table, target)
              for column, target in zip(columns, targets, strict=True)]  # fmt: skip
    yield pictures(drawn)


def _of_utterances(split: SplitResult, worst: Sequence[Extract], scale: tuple[float, float]) -> Iterator[Markup]:
    if not worst:
        return
    rows = split.table

    def rating(target: str, value: float) -> str:
        return f"{on_scale(target, float(value), scale):.2f}"

    lines: list[tuple[Cell, ...]] = []
    for one in worst:
        who = with_small(rows.keys[one.row], f"{rows.speakers[one.row] or 'unknown'}, {rows.duration_s[one.row]:.1f} s")
        if one.flac:
            who = Markup(who.text + player(one.flac, f"Recording {rows.keys[one.row]}").text)
        metrics = [
            with_small(rating(target, prediction), f"label {rating(target, label)}" if label == label else "no label")
            for target, prediction, label in zip(
                rows.targets, rows.predictions[one.row], rows.labels[one.row], strict=True
            )
        ]
        lines.append(
            (who, f"{one.error:.3f}", *metrics, *([one.transcript] if any(e.transcript for e in worst) else []))
        )
    words = ("transcript",) if any(one.transcript for one in worst) else ()
    yield heading("Worst utterances", 3)
    yield table(f"Predictions farthest from their labels, on the scale of the ratings, {split.split}",
                ("utterance", "mean error, 0..1", *rows.targets, *words), lines,
                long=(0, len(rows.targets) + 2))  # fmt: skip


def _of_training(beside: Beside) -> Iterator[Markup]:
    yield heading("Training")
    yield paragraph(f"The run {beside.run}.")
    drawn = []
    for number, (begins, rows, what) in enumerate([
        ("train/loss", beside.steps, "training loss"),
        ("valid/loss", beside.validations, "validation loss"),
        ("valid/ccc_", beside.validations, "CCC on validation"),
    ]):  # fmt: skip
        curves = _curves(begins, rows)
        if curves:
            drawn.append(draw_curves(f"t{number}", curves, what))
    yield pictures(drawn)


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


def _cell(interval: Interval) -> Markup:
    ends = f"{interval.low:.3f} to {interval.high:.3f}" if interval.is_known else "no interval"
    return with_small(f"{interval.value:.3f}", ends)


def _gain(one: Difference) -> tuple[Cell, ...]:
    ends = f"{one.gain.low:+.3f} to {one.gain.high:+.3f}" if one.gain.is_known else "no interval"
    return one.target, f"{one.first:.3f}", f"{one.second:.3f}", with_small(f"{one.gain.value:+.3f}", ends)
