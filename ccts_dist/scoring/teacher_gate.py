"""Cached outputs of a teacher for the utterances of a table, and which of them its condition would let pass."""

from dataclasses import replace
from math import isfinite, nan

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ccts_dist.errors import TeacherError
from ccts_dist.loader.row_gate import RowGate
from ccts_dist.losses.gate import apply_gate, residuals
from ccts_dist.scoring.gate import DEFAULT_GATE, Gate
from ccts_dist.scoring.prediction_table import PredictionTable, TeacherColumns
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache


def with_teacher(
    table: PredictionTable, cache: TeacherCache, shard_set: ShardSet, split: str, *, gate: Gate = DEFAULT_GATE
) -> PredictionTable:
    """The table with the teacher's predictions, the residuals, and the gate's decision on each utterance.

    Args:
        table: of ``split``.
        cache: of ``shard_set``; must have the split.
        gate: of the run that the model comes from.

    Raises:
        TeacherError: the teacher predicts none of the table's targets, or the cache lacks an utterance.
    """
    shared = [target for target in table.targets if target in cache.targets]
    if not shared:
        raise TeacherError(
            f"{cache.root}: its teacher predicts {', '.join(cache.targets)}, and the model {', '.join(table.targets)}: "
            "nothing that could be compared. Give the cache of another teacher."
        )
    predicted, admitted = _read(table, cache, shard_set, split, gate.by_row)
    labels = torch.full((len(table), len(cache.targets)), torch.nan, dtype=torch.float64)
    prediction = np.full_like(table.predictions, np.nan)
    residual = np.full_like(table.predictions, np.nan)
    for target in shared:
        labels[:, cache.targets.index(target)] = torch.from_numpy(table.labels[:, table.targets.index(target)])
    gate, condition = gate.on(cache)
    off = residuals(condition, torch.from_numpy(predicted), labels)
    widest = [nan] * len(table.targets)
    for target in shared:
        here, there = table.targets.index(target), cache.targets.index(target)
        prediction[:, here], residual[:, here] = predicted[:, there], off[:, there].numpy()
        if gate.has_threshold and isfinite(condition.residual_std[there]):
            widest[here] = gate.threshold * condition.residual_std[there]
    decided = apply_gate(
        gate.name, gate.threshold, condition, torch.from_numpy(predicted), labels, torch.ones(len(table)), admitted
    ).numpy()
    if decided.ndim == 2:  # in the order of the table's targets; what the teacher does not predict passes
        gate_mask = np.ones(table.predictions.shape, dtype=bool)
        for target in shared:
            gate_mask[:, table.targets.index(target)] = decided[:, cache.targets.index(target)]
        decided = gate_mask
    columns = TeacherColumns(
        prediction=prediction, residual=residual, gate_mask=decided, widest=tuple(widest), gate=gate
    )
    return replace(table, teacher=columns)


def _read(
    table: PredictionTable, cache: TeacherCache, shard_set: ShardSet, split: str, gate: RowGate | None
) -> tuple[np.ndarray, Bool[Tensor, " rows"] | None]:
    """The teacher's predictions, and the decisions of a gate that looks at keys or transcripts, row for row."""
    wanted, predicted = {key: row for row, key in enumerate(table.keys)}, np.empty((len(table), len(cache.targets)))
    admitted = None if gate is None else torch.zeros(len(table), dtype=torch.bool)
    shards = [shard.name for shard in shard_set.shards_of((split,))]
    cache.prefetch(shards)
    for shard in shards:
        rows = shard_set.rows(shard)
        for row, key in enumerate(rows.keys):
            if key in wanted:
                predicted[wanted[key]] = cache.read(shard, row, key).prediction
                if gate is not None and admitted is not None:
                    admitted[wanted[key]] = gate.admits(shard_set, rows, row)
    return predicted, admitted
