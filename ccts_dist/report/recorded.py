"""A run as it can be read back: its settings, the figures of every step, and its final scores."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccts_dist.config import with_present_keys
from ccts_dist.config.renamed import present_metric, with_present_metrics, with_present_names
from ccts_dist.errors import ConfigError
from ccts_dist.tracking.fetch_run import SCHEME, fetch_run

HISTORY, VALIDATIONS, SETTINGS, SUMMARY = "history.jsonl", "validations.jsonl", "run.toml", "summary.json"
RESOLVED = "resolved."
"""How the names of the settings in a summary begin, which are no scores."""

OF_A_STEP, OF_THE_TEST = ("train/", "distill/", "data/", "throughput/"), "test/ccc_"
"""How the names of a step's figures begin, and those of the final scores, where a server keeps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """The record of one run; a run under way has no scores yet."""

    name: str
    """Name as the user gave it."""

    settings: Mapping[str, Any]
    """Keys of the resolved run file, dotted; empty where there is none. A tracking server gives them as text."""

    steps: Mapping[int, Mapping[str, Any]]
    """Record of each step, by its number, rising; of a step that stands there twice, the later line."""

    scores: Mapping[str, float]
    """Figures of the finished run, dotted; NaN for one that has no value."""

    notes: tuple[str, ...] = ()
    """In words, what of the record was passed over."""


def read_run_of(place: str, *, tracking_uri: str = "") -> RecordedRun:
    """The run that a user names: a run folder, or ``runs:/ID`` at a tracking server.

    Raises:
        ConfigError: there is no such run, or none that has taken a step.
    """
    return read_tracked(place, tracking_uri=tracking_uri) if place.startswith(SCHEME) else read_recorded(Path(place))


def read_tracked(address: str, *, tracking_uri: str = "") -> RecordedRun:
    """The run at a tracking server; it has no checksums of the utterances, and no losses that were not finite.

    Raises:
        ConfigError: no such run, no answer, or no step in it.
    """
    run = fetch_run(address, tracking_uri=tracking_uri)
    steps: dict[int, dict[str, float]] = {}
    for name, values in run.metrics.items():
        if (name := present_metric(name)).startswith(OF_A_STEP):
            for step, value in values.items():
                steps.setdefault(step, {})[name] = value
    if not steps:
        raise ConfigError(f"{address}: no step was tracked in it. Compare when the run has taken some.")
    tests = {name: values for name, values in run.metrics.items() if name.startswith(OF_THE_TEST)}
    return RecordedRun(
        name=address,
        settings=run.params,
        steps=dict(sorted(steps.items())),
        # Named as in a run folder's summary.
        scores={f"test.{name.removeprefix(OF_THE_TEST)}": values[max(values)] for name, values in tests.items()},
    )


def read_recorded(folder: Path) -> RecordedRun:
    """The run in a run folder, finished or under way.

    A last line without its end is one that is being written, or was when the run was killed: it is omitted, and
    noted. Steps that stand there twice were replayed: the later line counts, and that is noted too.

    Raises:
        ConfigError: no such folder, no history in it, or a file that is not what training writes there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Give a run's folder (`output` of its run file).")
    path = folder / HISTORY
    if not path.is_file():
        raise ConfigError(f"{folder}: no {HISTORY} in it, so no run has trained there. Give a run's folder.")
    steps, notes = parse_history(_read(path), str(path))
    if not steps:
        raise ConfigError(f"{path}: no step in it yet. Compare when the run has taken some.")
    return RecordedRun(
        name=str(folder),
        settings=flat(
            with_present_keys(_parse(folder / SETTINGS, tomllib.loads), source=str(folder / SETTINGS), stored=True)
        ),
        steps=steps,
        scores={
            key: metric_value(value)
            for key, value in flat(with_present_names(_parse(folder / SUMMARY, json.loads))).items()
            if not key.startswith(RESOLVED)
        },
        notes=notes,
    )


def read_validations(place: str) -> dict[int, dict[str, Any]]:
    """Record of each validation in a run folder, by its step; empty where there is none.

    A run at a tracking server (``runs:/ID``) has none either: ``read_tracked`` gives what its steps have.

    Raises:
        ConfigError: a file that is not what training writes there.
    """
    path = Path(place) / VALIDATIONS
    return parse_history(_read(path), str(path))[0] if path.is_file() else {}


def parse_history(text: str, source: str) -> tuple[dict[int, dict[str, Any]], tuple[str, ...]]:
    """The steps in the lines of a history, by number, and what was passed over, in words.

    Raises:
        ConfigError: a line before the last that is no step; ``source`` names the file.
    """
    steps: dict[int, dict[str, Any]] = {}
    notes, num_replayed = [], 0
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
            if isinstance(step, bool) or not isinstance(step, int):
                raise TypeError(f"step {step!r}")
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ConfigError(
                    f"{source}: line {number} is not a step as training writes it ({error!r}). Was it edited? "
                    "Take the line out, or give another run."
                ) from error
            if line:
                notes.append("its last line is half-written and omitted")
            continue
        num_replayed += step in steps
        steps[step] = with_present_metrics(row)
    if num_replayed:
        notes.append(f"{num_replayed} of its lines are of steps that were replayed; the later ones count")
    return dict(sorted(steps.items())), tuple(notes)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted key."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def metric_value(value: Any) -> float:
    """A number as it stands; NaN for anything else, also for nothing."""
    return math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Give another run, or mend the file.") from error


def _parse(path: Path, parse: Any) -> Mapping[str, Any]:
    """Contents of a file of the run; empty when it is not there."""
    if not path.exists():
        return {}
    try:
        tree = parse(_read(path))
    except ValueError as error:  # TOML's and JSON's errors are ValueErrors
        raise ConfigError(f"{path}: not what training writes there ({error}). Give another run, or mend it.") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, not a table. Give another run, or mend it.")
    return tree
