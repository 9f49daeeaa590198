"""The results of an evaluation: as files for other programs, and in words."""

import math
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ccts_dist import __version__
from ccts_dist.errors import ConfigError
from ccts_dist.evaluation.extracts import with_contents, worst_utterances
from ccts_dist.evaluation.options import Asked
from ccts_dist.evaluation.page import Beside, gate_in_words, make_page
from ccts_dist.evaluation.run import ModelResult, Result, SplitResult
from ccts_dist.files.strict_json import json_text
from ccts_dist.redaction import redact
from ccts_dist.report.markdown_table import format_table
from ccts_dist.report.recorded import read_run_of, read_validations
from ccts_dist.report.score_tables import scores_to_text
from ccts_dist.scoring import UAR, Difference, Gate, Interval, few_speakers, unweighted_accuracy, write_table
from ccts_dist.scoring.predict_split import scores_to_tree
from ccts_dist.shards.format.schema import escape_key
from ccts_dist.shards.shard_set import open_shard_set

METRICS, PAGE = "metrics.json", "report.html"


def predictions_name(split: str, number: int) -> str:
    """The name of a table: of a split, and of the model with that number, counted from 0.

    A split may be called anything: in a file's name every byte but letters, digits, "_" and "-" is ``%XX``.
    """
    name = escape_key(split)
    return f"predictions-{name}.parquet" if number == 0 else f"predictions-{name}.{number + 1}.parquet"


def make_folder(out: Path) -> None:
    """Have the folder ready before any work is done.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / METRICS).touch()
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}). Name another folder with --out.") from error


def beside_of(asked: Asked, result: Result) -> Beside:
    """What the page has beside the figures.

    Raises:
        ConfigError: no such run, or none that has taken a step.
        ShardError: words or sound of an utterance are damaged.
    """
    worst = {one.split: worst_utterances(one.table) for one in result.models[0].splits}
    if asked.transcripts or asked.embed_audio:
        shard_set = open_shard_set(asked.shards)
        worst = {
            one.split: with_contents(
                worst[one.split],
                one.table,
                shard_set,
                one.split,
                transcripts=asked.transcripts,
                sound=asked.embed_audio,
            )
            for one in result.models[0].splits
        }
    if not asked.run:
        return Beside(worst=worst, facts=_facts())
    run = read_run_of(asked.run, tracking_uri=asked.tracking_uri)
    validations = read_validations(asked.run)
    return Beside(worst=worst, facts=_facts(), run=asked.run, steps=run.steps, validations=validations)


def _facts() -> dict[str, str]:
    """How the page is made."""
    versions = (f"{name} {version(name)}" for name in ("torch", "transformers"))
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "versions": f"ccts-dist {__version__}, {', '.join(versions)}, Python {platform.python_version()}",
    }


def write_results(out: Path, result: Result, beside: Beside) -> None:
    """Write ``report.html``, ``metrics.json``, and a table of predictions for each model and split.

    Raises:
        ConfigError: the folder cannot be written.
    """
    first, *others = (_model_tree(model) for model in result.models)
    tree = {**first, "shards": result.shards_digest, **({"others": others} if others else {})}
    try:
        for number, model in enumerate(result.models):
            for one in model.splits:
                write_table(out / predictions_name(one.split, number), one.table)
        (out / METRICS).write_text(json_text(tree, indent=2) + "\n", encoding="utf-8")
        (out / PAGE).write_text(make_page(result, beside), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}). Name another folder with --out.") from error


def result_in_words(result: Result) -> str:
    """The tables of every model and split; Markdown."""
    parts = []
    for model in result.models:
        for one in model.splits:
            title = one.split if len(result.models) == 1 else f"{model.name}: {one.split}"
            parts += [title, scores_to_text(one.scores), _intervals_in_words(one)]
            for note, found in (("the teacher less this model", one.teacher_gap), (_gain_of(result), one.gains)):
                if found:
                    measure = "CCC" if one.table.targets else "gain"
                    parts.append(format_table((note, measure, "95 %"), [_gain_row(gain) for gain in found]))
            if one.table.teacher is not None:
                parts.append(gate_in_words(one.table.teacher))
            if one.in_noise:
                parts.append(_noise_in_words(one))
            if one.in_rooms:
                parts.append(_rooms_in_words(one))
    return "\n\n".join(part for part in parts if part) + "\n"


def _gain_of(result: Result) -> str:
    return f"{result.models[0].name} less this model"


def _gain_row(gain: Difference) -> tuple[str, str, str]:
    return gain.target, f"{gain.gain.value:+.4f}", _ends(gain.gain, "+.4f")


def _intervals_in_words(one: SplitResult) -> str:
    rows = [
        (each.target, *(f"{figure.value:.4f} ({_ends(figure)})" for figure in (each.ccc, each.pearson, each.bias)))
        for each in one.metrics
    ]
    num_speakers = one.table.num_speakers
    head = f"95 % intervals, {num_speakers} speakers drawn with replacement"
    if not rows:
        found = unweighted_accuracy(one.table)
        rows, names = [(UAR, f"{found.value:.4f} ({_ends(found)})")], ("categories", "")
    else:
        names = ("target", "CCC", "Pearson", "C_b")
    table = format_table(names, rows)
    return "\n\n".join(part for part in (head, few_speakers(num_speakers), table) if part)


def _noise_in_words(one: SplitResult) -> str:
    clean = tuple(each.ccc for each in one.metrics)
    rows = [("none", "-", *(f"{ccc.value:.4f}" for ccc in clean))]
    rows += [(each.noise, f"{each.snr_db:g}", *(f"{ccc.value:.4f}" for ccc in each.ccc)) for each in one.in_noise]
    return format_table(("noise", "dB", *one.table.targets), rows)


def _rooms_in_words(one: SplitResult) -> str:
    rows = [("none", *(f"{each.ccc.value:.4f}" for each in one.metrics))]
    rows += [(each.impulse_responses, *(f"{ccc.value:.4f}" for ccc in each.ccc)) for each in one.in_rooms]
    return format_table(("impulse responses", *one.table.targets), rows)


def _ends(interval: Interval, form: str = ".4f") -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}" if interval.is_known else "no interval"


def _model_tree(model: ModelResult) -> dict[str, Any]:
    splits = {one.split: _split_tree(one) for one in model.splits}
    return {"model": model.pulled.version, "weights": model.weights_sha256, "splits": splits}


def _split_tree(one: SplitResult) -> dict[str, Any]:
    targets = one.table.targets
    tree = scores_to_tree(one.scores)
    tree["c_b"] = {each.target: _number(each.bias.value) for each in one.metrics}
    tree["speakers"] = one.table.num_speakers
    if not targets:
        found = unweighted_accuracy(one.table)
        tree["unweighted_accuracy"] = {"value": _number(found.value), "95%": _pair(found)}
    tree["intervals"] = {
        name: {each.target: _pair(getattr(each, field)) for each in one.metrics}
        for name, field in (("ccc", "ccc"), ("pearson", "pearson"), ("c_b", "bias"), ("mae", "mae"))
    }
    tree["groups"] = [
        {
            "by": group.kind,
            "name": group.name,
            "utterances": group.num_utterances,
            "speakers": group.num_speakers,
            "ccc": _by_target(targets, [ccc.value for ccc in group.ccc]),
            "interval": {target: _pair(ccc) for target, ccc in zip(targets, group.ccc, strict=True)},
        }
        for group in one.groups
    ]
    tree["by_speaker"] = [
        {
            "speaker": speaker.speaker,
            "utterances": speaker.num_utterances,
            "ccc": _by_target(targets, speaker.ccc),
            "shift": _by_target(targets, speaker.shift),
        }
        for speaker in one.speakers
    ]
    for name, found in (("teacher_gap", one.teacher_gap), ("gain_of_the_first", one.gains)):
        if found:
            tree[name] = {each.target: {"gain": _number(each.gain.value), "95%": _pair(each.gain)} for each in found}
    if one.table.teacher is not None:
        tree["distilled_fraction"] = float(one.table.teacher.gate_mask.mean())
        tree["gate"] = gate_tree(one.table.teacher.gate)
    if one.in_noise:
        tree["in_noise"] = [
            {"noise": each.noise, "snr_db": each.snr_db, "ccc": _by_target(targets, [ccc.value for ccc in each.ccc])}
            for each in one.in_noise
        ]
    if one.in_rooms:
        tree["in_rooms"] = [
            {"impulse_responses": each.impulse_responses, "ccc": _by_target(targets, [ccc.value for ccc in each.ccc])}
            for each in one.in_rooms
        ]
    return tree


def gate_tree(gate: Gate) -> dict[str, Any]:
    """The gate by which ``distilled_fraction`` was counted, and whether it is that of the model's run."""
    return {"name": gate.name, "threshold": gate.threshold if gate.has_threshold else None, "of_run": gate.of_run}


def _by_target(targets: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {target: _number(value) for target, value in zip(targets, values, strict=True)}


def _pair(interval: Interval) -> list[float] | None:
    return [interval.low, interval.high] if interval.is_known else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
