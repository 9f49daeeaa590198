"""The figures of an evaluation as ``metrics.json`` holds them."""

import math
from collections.abc import Sequence
from typing import Any

from ccts_dist.evaluation.run import ModelResult, SplitResult
from ccts_dist.scoring import Difference, Gate, Interval, unweighted_accuracy
from ccts_dist.scoring.predict_split import scores_to_tree

CEILINGS = {"one": "one rater", "half": "half of the raters", "noise": "noise ceiling"}
"""Names of the fields of ``RaterCeiling``."""


def model_tree(model: ModelResult) -> dict[str, Any]:
    """A model's version, weights, and figures by split."""
    splits = {one.split: _split_tree(one) for one in model.splits}
    return {"model": model.pulled.version, "weights": model.weights_sha256, "splits": splits}


def _split_tree(one: SplitResult) -> dict[str, Any]:
    tree = {**scores_to_tree(one.scores), **_figures_tree(one), **_parts_tree(one), **_comparisons_tree(one)}
    if one.table.teacher is not None:
        tree["distilled_fraction"] = float(one.table.teacher.gate_mask.mean())
        tree["gate"] = gate_tree(one.table.teacher.gate)
    if one.in_noise:
        tree["in_noise"] = [
            {"noise": each.noise, "snr_db": each.snr_db, "ccc": _values(one, each.ccc)} for each in one.in_noise
        ]
    if one.in_rooms:
        tree["in_rooms"] = [
            {"impulse_responses": each.impulse_responses, "ccc": _values(one, each.ccc)} for each in one.in_rooms
        ]
    return tree


def _figures_tree(one: SplitResult) -> dict[str, Any]:
    """Figures of the whole split that have intervals."""
    tree: dict[str, Any] = {"c_b": {each.target: _number(each.bias.value) for each in one.metrics}}
    tree["speakers"] = one.table.num_speakers
    if not one.table.targets:
        tree["unweighted_accuracy"] = _estimate(unweighted_accuracy(one.table))
    tree["intervals"] = {
        name: {each.target: _pair(getattr(each, field)) for each in one.metrics}
        for name, field in (("ccc", "ccc"), ("pearson", "pearson"), ("c_b", "bias"), ("mae", "mae"))
    }
    tree["calibration"] = {
        each.target: {name: _estimate(getattr(each, name)) for name in ("slope", "intercept", "shift")}
        for each in one.metrics
    }
    if one.ceilings:
        tree["raters"] = {
            each.target: {
                "labels": each.num_labels,
                **{name.replace(" ", "_"): _estimate(getattr(each, field)) for field, name in CEILINGS.items()},
            }
            for each in one.ceilings
        }
    return tree


def _parts_tree(one: SplitResult) -> dict[str, Any]:
    """Groups, the gaps between them, and speakers."""
    groups = [
        {
            "by": group.kind,
            "name": group.name,
            "utterances": group.num_utterances,
            "speakers": group.num_speakers,
            "ccc": _values(one, group.ccc),
            "interval": _by_target(one, [_pair(ccc) for ccc in group.ccc]),
        }
        for group in one.groups
    ]
    gaps = [
        {
            "by": gap.kind,
            "name": gap.name,
            "less": gap.other,
            "ccc": _by_target(one, [_estimate(ccc) for ccc in gap.ccc]),
            "shift": _by_target(one, [_estimate(shift) for shift in gap.shift]),
        }
        for gap in one.gaps
    ]
    speakers = [
        {
            "speaker": speaker.speaker,
            "utterances": speaker.num_utterances,
            "ccc": _by_target(one, [_number(ccc) for ccc in speaker.ccc]),
            "shift": _by_target(one, [_number(shift) for shift in speaker.shift]),
        }
        for speaker in one.speakers
    ]
    return {"groups": groups, "gaps": gaps, "by_speaker": speakers}


def _comparisons_tree(one: SplitResult) -> dict[str, Any]:
    """The model beside its teacher, the first model, and the text-only model; of each what there is."""
    by_sentiment = [
        {"name": each.name, "utterances": each.num_utterances, "gains": _gains_tree(each.gains)}
        for each in one.sentiment_gains
    ]
    tree = {
        "teacher_gap": _gains_tree(one.teacher_gap),
        "gain_of_the_first": _gains_tree(one.gains),
        "lexical": {target: _estimate(found) for target, found in one.lexical.items()},
        "lexical_change_of_the_first": _gains_tree(one.lexical_changes),
        "gain_of_the_first_by_sentiment": by_sentiment,
    }
    return {name: found for name, found in tree.items() if found}


def _gains_tree(found: Sequence[Difference]) -> dict[str, Any]:
    return {each.target: {"gain": _number(each.gain.value), "95%": _pair(each.gain)} for each in found}


def gate_tree(gate: Gate) -> dict[str, Any]:
    """The gate by which ``distilled_fraction`` was counted, and whether it is that of the model's run."""
    return {"name": gate.name, "threshold": gate.threshold if gate.has_threshold else None, "of_run": gate.of_run}


def _by_target(one: SplitResult, values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(one.table.targets, values, strict=True))


def _values(one: SplitResult, figures: Sequence[Interval]) -> dict[str, Any]:
    return _by_target(one, [_number(figure.value) for figure in figures])


def _estimate(interval: Interval) -> dict[str, Any]:
    return {"value": _number(interval.value), "95%": _pair(interval)}


def _pair(interval: Interval) -> list[float] | None:
    return [interval.low, interval.high] if interval.is_known else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
