"""Figures of a finished run, read from the ``summary.json`` in its folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ccts_dist.config.renamed import with_present_names
from ccts_dist.errors import ConfigError
from ccts_dist.files.strict_json import as_number
from ccts_dist.limits import read_limited
from ccts_dist.report.recorded import SUMMARY

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How one training ended; see ``train.trainer.TrainResult``."""

    ccc: dict[str, float]
    """CCC of the best model on the test splits, by target; NaN where it has none."""

    sums: dict[str, list[float]]
    """The sums that ``ccc`` comes from, as ``SplitSums.pooled`` takes them; empty in records of early releases."""

    distilled_fraction: float | None
    """Share of the training utterances that were distilled; None without a teacher."""

    best_epoch: int
    seconds: float


def read_summary(folder: Path) -> Summary:
    """The summary in a run folder.

    Raises:
        ConfigError: there is none, or it is not what training writes.
    """
    return read_stage_json(folder / SUMMARY, _summary)


def _summary(tree: Mapping[str, Any]) -> Summary:
    return Summary(
        ccc={target: float(as_number(value)) for target, value in tree["test"].items()},
        sums={target: [*map(as_number, own)] for target, own in tree.get("test_sums", {}).items()},
        distilled_fraction=tree["distilled_fraction"],
        best_epoch=tree["best_epoch"],
        seconds=tree["seconds"],
    )


def read_stage_json(path: Path, take: Callable[[Mapping[str, Any]], Read]) -> Read:
    """The result of ``take`` on the table in a JSON file that a stage wrote; keys have their present names.

    Raises:
        ConfigError: there is no such file, or ``take`` does not find in it what it looks for.
    """
    try:
        return take(with_present_names(json.loads(read_limited(path, "figures of a run"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: not what its stage wrote ({words}). Restore it, or begin in an empty folder."
        ) from error
