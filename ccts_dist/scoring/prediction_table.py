"""A model's predictions of each utterance of a split, beside what is known of it; kept as Parquet."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ccts_dist.config.renamed import present_name
from ccts_dist.errors import ConfigError
from ccts_dist.scoring.gate import DEFAULT_GATE, Gate
from ccts_dist.scoring.measures import row_sums
from ccts_dist.scoring.speakers import clusters_of, sums_by_speaker

_FACTS = b"ccts_dist.predictions"
"""In the file's metadata: targets, and what the teacher's gate lets pass, null without a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherColumns:
    """Output of a teacher for the same utterances, and whether a student would have been distilled from it there."""

    prediction: Float64[np.ndarray, "rows dim"]
    """NaN in the columns of targets that it does not predict."""

    residual: Float64[np.ndarray, "rows dim"]
    """w * prediction + b - label, of the condition; NaN without a label."""

    gate_mask: Bool[np.ndarray, " rows"] | Bool[np.ndarray, "rows dim"] | Float64[np.ndarray, " rows"]
    """The gate's decision: whether the utterance passes; with a gate per dimension whether each of its predictions
    does; with "soft" its share."""

    widest: tuple[float, ...]
    """Residual of each target that the gate lets pass at most; NaN where there are none."""

    gate: Gate = DEFAULT_GATE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RaterColumns:
    """The spread of each utterance's raters."""

    variance: Float64[np.ndarray, "rows dim"]
    """Population variance of their ratings on 0..1; NaN where it is unknown, and for targets that are no ratings."""

    count: Int64[np.ndarray, " rows"]
    """How many they are; 0 where it is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictionTable:
    """One row per utterance, in the order of the shards."""

    targets: tuple[str, ...]
    """Names of the columns of labels and predictions."""

    keys: tuple[str, ...]
    speakers: tuple[str | None, ...]
    genders: tuple[str | None, ...]
    duration_s: Float64[np.ndarray, " rows"]
    num_words: Int64[np.ndarray, " rows"]
    """Number of words of the transcript."""

    labels: Float64[np.ndarray, "rows dim"]
    """0..1; NaN where nobody rated."""

    predictions: Float64[np.ndarray, "rows dim"]
    categories: tuple[str | None, ...] = ()
    """Categories in the corpus's spelling, or as ``model.category_map`` has them; empty, as the next, for a model
    without categories."""

    predicted_categories: tuple[str, ...] = ()
    known_categories: tuple[str, ...] = ()
    """That the model distinguishes; empty as well in tables of earlier versions."""

    teacher: TeacherColumns | None = None
    raters: RaterColumns | None = None
    """None where nothing is known of them."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_speakers(self) -> int:
        """Speakers that are drawn from; each utterance of an unknown one counts as one."""
        return 1 + max(clusters_of(self.speakers), default=-1)

    def rows(self) -> Float64[Tensor, "rows 7 dim"]:
        """Each utterance's sums, as ``measures.row_sums``."""
        return _row_sums(self.predictions, self.labels)

    def sums(self) -> Float64[Tensor, "speakers 7 dim"]:
        """Each speaker's sums."""
        return sums_by_speaker(self.speakers, self.rows())

    def teacher_sums(self) -> Float64[Tensor, "speakers 7 dim"]:
        """Each speaker's sums of what the teacher predicted; there must be one."""
        assert self.teacher is not None
        labels = np.where(np.isnan(self.teacher.prediction), np.nan, self.labels)
        return sums_by_speaker(self.speakers, _row_sums(self.teacher.prediction, labels))

    def teacher_of(self, target: str) -> Float64[np.ndarray, " rows"]:
        """The teacher's prediction of one target; there must be one."""
        assert self.teacher is not None
        return self.teacher.prediction[:, self.targets.index(target)]

    def take(self, rows: Bool[np.ndarray, " rows"] | Int64[np.ndarray, " taken"]) -> "PredictionTable":
        """Some of its rows: those where a mask is True, or by number, in that order."""
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows

        def some(values: tuple) -> tuple:
            return tuple(values[row] for row in numbers) if values else ()

        teacher = None
        if self.teacher is not None:
            columns = (self.teacher.prediction, self.teacher.residual, self.teacher.gate_mask)
            prediction, residual, gate_mask = (column[numbers] for column in columns)
            teacher = replace(self.teacher, prediction=prediction, residual=residual, gate_mask=gate_mask)
        raters = self.raters and RaterColumns(variance=self.raters.variance[numbers], count=self.raters.count[numbers])
        return replace(
            self,
            keys=some(self.keys),
            speakers=some(self.speakers),
            genders=some(self.genders),
            duration_s=self.duration_s[numbers],
            num_words=self.num_words[numbers],
            labels=self.labels[numbers],
            predictions=self.predictions[numbers],
            categories=some(self.categories),
            predicted_categories=some(self.predicted_categories),
            teacher=teacher,
            raters=raters,
        )

    def only(self, targets: Sequence[str]) -> "PredictionTable":
        """Without the other targets, and without a teacher."""
        columns = [self.targets.index(target) for target in targets]
        return replace(
            self,
            targets=tuple(targets),
            labels=self.labels[:, columns],
            predictions=self.predictions[:, columns],
            teacher=None,
            raters=self.raters and replace(self.raters, variance=self.raters.variance[:, columns]),
        )


def joined(tables: Sequence[PredictionTable]) -> PredictionTable:
    """The rows of several splits in one table, without teacher and raters; at least one, all of one model."""

    def all_of(name: str) -> tuple:
        return tuple(value for table in tables for value in getattr(table, name))

    def stacked(name: str) -> np.ndarray:
        return np.concatenate([getattr(table, name) for table in tables])

    return PredictionTable(
        targets=tables[0].targets,
        keys=all_of("keys"),
        speakers=all_of("speakers"),
        genders=all_of("genders"),
        duration_s=stacked("duration_s"),
        num_words=stacked("num_words"),
        labels=stacked("labels"),
        predictions=stacked("predictions"),
        categories=all_of("categories"),
        predicted_categories=all_of("predicted_categories"),
        known_categories=tables[0].known_categories,
    )


def write_table(path: Path, table: PredictionTable) -> None:
    """Write a table as Parquet: a column for every target's label and prediction, and the teacher's and raters' if any.

    Raises:
        ConfigError: the file cannot be written.
    """
    columns: dict[str, pa.Array] = {
        "key": pa.array(table.keys, pa.string()),
        "speaker": pa.array(table.speakers, pa.string()),
        "gender": pa.array(table.genders, pa.string()),
        "duration_s": pa.array(table.duration_s, pa.float64()),
        "num_words": pa.array(table.num_words, pa.int64()),
    }
    of_targets = {"label": table.labels, "prediction": table.predictions}
    if table.teacher is not None:
        of_targets |= {"teacher": table.teacher.prediction, "residual": table.teacher.residual}
    if table.raters is not None:
        columns["num_raters"] = pa.array(table.raters.count, pa.int64())
        of_targets["variance"] = table.raters.variance
    for kind, values in of_targets.items():
        for place, target in enumerate(table.targets):
            # NaN, nobody having rated, becomes null.
            columns[f"{kind}.{target}"] = pa.array(values[:, place], pa.float64(), from_pandas=True)
    if table.teacher is not None:
        columns |= _gate_columns(table.targets, table.teacher.gate_mask)
    if table.predicted_categories:
        columns["category"] = pa.array(table.categories, pa.string())
        columns["prediction.category"] = pa.array(table.predicted_categories, pa.string())
    widest = None if table.teacher is None else table.teacher.widest
    gate = None if table.teacher is None else asdict(table.teacher.gate)
    facts = {"targets": table.targets, "widest": widest, "gate": gate}
    if table.known_categories:
        facts["categories"] = table.known_categories
    metadata = {_FACTS: json.dumps(facts).encode()}
    try:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error}). Name another folder with --out.") from error


def read_table(path: Path) -> PredictionTable:
    """A table that ``write_table`` wrote.

    Raises:
        ConfigError: no such file, or another one.
    """
    try:
        table = pq.read_table(path, use_threads=False)
        facts = json.loads((table.schema.metadata or {})[_FACTS])
        return _from_columns(table.rename_columns([present_name(name) for name in table.column_names]), facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise ConfigError(
            f"{path}: no table of predictions ({type(error).__name__}). Give one that launch/evaluate.py wrote."
        ) from error


def _from_columns(table: pa.Table, facts: Mapping[str, Any]) -> PredictionTable:
    targets, widest = tuple(facts["targets"]), facts["widest"]

    def texts(name: str) -> tuple:
        return tuple(table[name].to_pylist()) if name in table.column_names else ()

    def numbers(name: str) -> np.ndarray:
        return table[name].to_numpy()

    def by_target(kind: str) -> np.ndarray:
        columns = [numbers(f"{kind}.{target}").astype(np.float64) for target in targets]
        return np.stack(columns, axis=1) if columns else np.zeros((table.num_rows, 0))

    def gated() -> np.ndarray:
        if "gate_mask" in table.column_names:
            return numbers("gate_mask")
        return np.stack([numbers(f"gate_mask.{target}").astype(bool) for target in targets], axis=1)

    teacher = None
    if widest is not None:
        teacher = TeacherColumns(
            prediction=by_target("teacher"),
            residual=by_target("residual"),
            gate_mask=gated(),
            widest=tuple(widest),
            gate=_gate(facts.get("gate") or {}),  # tables of earlier versions have the default alone
        )
    return PredictionTable(
        targets=targets,
        keys=texts("key"),
        speakers=texts("speaker"),
        genders=texts("gender"),
        duration_s=numbers("duration_s"),
        num_words=numbers("num_words"),
        labels=by_target("label"),
        predictions=by_target("prediction"),
        categories=texts("category"),
        predicted_categories=texts("prediction.category"),
        known_categories=tuple(facts.get("categories", ())),
        teacher=teacher,
        raters=RaterColumns(variance=by_target("variance"), count=numbers("num_raters"))
        if "num_raters" in table.column_names
        else None,
    )


def _gate(facts: Mapping[str, Any]) -> Gate:
    return Gate(**{**facts, "targets": tuple(facts.get("targets", ()))})


def _gate_columns(targets: Sequence[str], gate_mask: np.ndarray) -> dict[str, pa.Array]:
    """ "gate_mask" for whole utterances, or for each target with a gate per dimension."""
    if gate_mask.ndim == 2:
        return {
            f"gate_mask.{target}": pa.array(gate_mask[:, place], pa.bool_()) for place, target in enumerate(targets)
        }
    return {"gate_mask": pa.array(gate_mask)}


def _row_sums(
    predictions: Float64[np.ndarray, "rows dim"], labels: Float64[np.ndarray, "rows dim"]
) -> Float64[Tensor, "rows 7 dim"]:
    weight = torch.ones(len(labels), dtype=torch.float64)
    return row_sums(torch.from_numpy(predictions), torch.from_numpy(labels), weight)
