"""A comparison of two runs in words and small tables, for people."""

import math

from ccts_dist.report.comparison import Comparison, MetricComparison, difference
from ccts_dist.report.markdown_table import format_table


def comparison_in_words(comparison: Comparison) -> str:
    """The comparison in words, the verdict last."""
    parts = [
        "\n".join(_run_line(comparison, number) for number in (0, 1)),
        _settings(comparison),
        "\n".join([_utterances(comparison), *_lengths(comparison)]),
        _figures(comparison),
        _scores(comparison),
        verdict(comparison),
    ]
    return "\n\n".join(part for part in parts if part)


def verdict(comparison: Comparison) -> str:
    """The compared figure's agreement, and where anything parted first."""
    one, steps = comparison.primary, len(comparison.common_steps)
    if one.diverges_at is None:
        line = (
            f"{one.metric}: agrees within {comparison.tolerance:g} over all {steps} common steps; largest difference "
            f"{one.largest:.3g}, at step {one.largest_at}"
        )
    else:
        line = (
            f"{one.metric}: parts at step {one.diverges_at} by more than {comparison.tolerance:g}; largest difference "
            f"{one.largest:.3g}, at step {one.largest_at}"
        )
    first = comparison.first_to_part
    if first is not None and first.metric != one.metric:
        line += f"\nthe first figure to part: {first.metric}, at step {first.diverges_at}"
    return line


def _run_line(comparison: Comparison, number: int) -> str:
    notes = "".join(f"; {note}" for note in comparison.notes[number])
    return f"{'AB'[number]}  {comparison.names[number]}: {comparison.num_steps[number]} steps{notes}"


def _settings(comparison: Comparison) -> str:
    if not comparison.settings:
        return "settings: the same"
    rows = [(key, _value(a), _value(b)) for key, (a, b) in comparison.settings.items()]
    return "settings that differ:\n" + format_table(("key", "A", "B"), rows)


def _value(value: object) -> str:
    text = "(absent)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _utterances(comparison: Comparison) -> str:
    if comparison.keys_part_at is not None:
        return f"utterances: the global batches part at step {comparison.keys_part_at}"
    if not comparison.keys_known:
        return "utterances: not recorded, so it is not known whether the steps have the same ones"
    return f"utterances: the same in each of the {len(comparison.common_steps)} common steps"


def _lengths(comparison: Comparison) -> list[str]:
    if comparison.same_steps:
        return []
    common = comparison.common_steps
    return [
        f"steps: {comparison.num_steps[0]} and {comparison.num_steps[1]}; compared are the {len(common)} that both "
        f"have, {common[0]} to {common[-1]}"
    ]


def _figures(comparison: Comparison) -> str:
    last = comparison.common_steps[-1]
    header = ("figure", "parts at", "largest", "at step", f"A, step {last}", f"B, step {last}", "difference")
    lines = [format_table(header, [_metric_row(one) for one in comparison.metrics])]
    for name, metrics in zip("AB", comparison.only_in, strict=True):
        if metrics:
            lines.append(f"only in {name}: {', '.join(metrics)}")
    return "\n".join(lines)


def _metric_row(one: MetricComparison) -> tuple[str, ...]:
    diverges_at = "-" if one.diverges_at is None else str(one.diverges_at)
    metrics = (_number(one.last[0]), _number(one.last[1]), f"{difference(*one.last):.2g}")
    return (one.metric, diverges_at, f"{one.largest:.2g}", str(one.largest_at), *metrics)


def _scores(comparison: Comparison) -> str:
    if not comparison.scores:
        return "scores: neither run has ended"
    rows = [(name, _number(a), _number(b), f"{difference(a, b):.2g}") for name, (a, b) in comparison.scores.items()]
    return "final scores:\n" + format_table(("score", "A", "B", "difference"), rows)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.6g}"
