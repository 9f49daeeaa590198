"""The results of an evaluation: as files for other programs, and in words."""

import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ccts_dist import __version__
from ccts_dist.errors import ConfigError
from ccts_dist.evaluation.extracts import with_contents, worst_utterances
from ccts_dist.evaluation.metrics_tree import CEILINGS, model_tree
from ccts_dist.evaluation.options import Asked
from ccts_dist.evaluation.page import Beside, gate_in_words, make_page
from ccts_dist.evaluation.run import Result, SplitResult
from ccts_dist.files.strict_json import json_text
from ccts_dist.redaction import redact
from ccts_dist.report.markdown_table import format_table
from ccts_dist.report.recorded import read_run_of, read_validations
from ccts_dist.report.score_tables import scores_to_text
from ccts_dist.scoring import (
    UAR,
    Difference,
    Interval,
    RaterCeiling,
    TargetMetrics,
    few_speakers,
    unweighted_accuracy,
    write_table,
)
from ccts_dist.shards.format.schema import escape_key
from ccts_dist.shards.shard_set import open_shard_set

METRICS, PAGE = "metrics.json", "report.html"


def predictions_name(split: str, number: int) -> str:
    """The name of a table: of a split, and of the model with that number, counted from 0.

    A split may be called anything: in a file's name every byte but letters, digits, "_" and "-" is ``%XX``.
    """
    name = escape_key(split)
    return f"predictions-{name}.parquet" if number == 0 else f"predictions-{name}.{number + 1}.parquet"


def make_folders(asked: Asked) -> None:
    """Have the folders of all files ready before any work is done.

    Raises:
        ConfigError: one cannot be written.
    """
    folder, option = asked.out, "--out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS).touch()
        if asked.submission is not None:
            folder, option = asked.submission.parent, "--submission"
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}). Name another folder with {option}."
        ) from error


def beside_of(asked: Asked, result: Result) -> Beside:
    """The parts of the page beside the figures.

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
    first, *others = (model_tree(model) for model in result.models)
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
            if one.lexical:
                rows = [(target, f"{found.value:.4f}", _ends(found)) for target, found in one.lexical.items()]
                parts.append(format_table(("partial correlation with the text-only model", "r", "95 %"), rows))
            for note, measure, found in (
                ("the teacher less this model", "CCC", one.teacher_gap),
                (_gain_of(result), "gain" if any(gain.target == UAR for gain in one.gains) else "CCC", one.gains),
                (_gain_of(result), "partial r", one.lexical_changes),
            ):
                if found:
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
    rows = [_figures_row(each, one.ceilings) for each in one.metrics]
    num_speakers = one.table.num_speakers
    head = f"95 % intervals, {num_speakers} speakers drawn with replacement"
    if not rows:
        found = unweighted_accuracy(one.table)
        rows, names = [(UAR, f"{found.value:.4f} ({_ends(found)})")], ("categories", "")
    else:
        names = ("target", "CCC", *(CEILINGS.values() if one.ceilings else ()), "Pearson", "C_b", "slope", "intercept")
    table = format_table(names, rows)
    return "\n\n".join(part for part in (head, few_speakers(num_speakers), table) if part)


def _figures_row(figures: TargetMetrics, ceilings: Sequence[RaterCeiling]) -> tuple[str, ...]:
    """A target's figures with their intervals, and after the CCC those of its raters without."""
    ccc, *others = (
        f"{figure.value:.4f} ({_ends(figure)})"
        for figure in (figures.ccc, figures.pearson, figures.bias, figures.slope, figures.intercept)
    )
    own = next((one for one in ceilings if one.target == figures.target), None)
    raters = [f"{getattr(own, name).value:.4f}" if own else "-" for name in CEILINGS] if ceilings else []
    return figures.target, ccc, *raters, *others


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
