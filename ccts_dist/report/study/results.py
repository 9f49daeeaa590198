"""Results of the demo study, read from its folders."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ccts_dist.config import RunConfig, read_run
from ccts_dist.corpus.demo.spoken import wrong_keys
from ccts_dist.distributed import Ranks
from ccts_dist.files.atomic import atomic_write
from ccts_dist.loader.row_gate import row_gate_of
from ccts_dist.losses.gate import apply_gate
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.recorded import SUMMARY
from ccts_dist.report.study.plan import Study
from ccts_dist.report.summary import read_stage_json, read_summary
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.shards.teacher_cache import open_teacher_cache
from ccts_dist.train.resolved import resolved_on_ranks

SYSTEMS = ("text", "speech", "teacher", "ts", "cts")
"""Runs of a chain, in the order of the table."""

GATE_COUNTS = "gate_counts.json"
"""In a chain's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """One training."""

    percent: int
    """Wrong transcripts."""

    seed: int
    system: str
    ccc: dict[str, float]
    """On the test split, by dimension."""

    best_epoch: int
    seconds: float
    distilled_fraction: float | None
    """Fraction of the utterances whose teacher could be distilled; None without a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCounts:
    """Whom the condition rejects of a chain's training utterances."""

    percent: int
    seed: int
    num_wrong: int
    """Utterances with another one's transcript."""

    num_right: int
    wrong_rejected: int | float
    """Their number, if the gate rejects whole utterances; else the sum of what it rejects of each."""

    right_rejected: int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that is complete, by share, seed and system."""

    runs: tuple[StudyRun, ...]
    gate_counts: tuple[GateCounts, ...]

    def ccc(self, percent: int, system: str, dimension: str) -> dict[int, float]:
        """By seed."""
        return {run.seed: run.ccc[dimension] for run in self.runs if (run.percent, run.system) == (percent, system)}


def read_results(study: Study) -> Results:
    """Results of the study so far."""
    runs, gate_counts = [], []
    for percent in study.percents:
        for seed in study.seeds:
            folder = study.chain_folder(percent, seed)
            runs += [run for system in SYSTEMS if (run := _read_run(folder, percent, seed, system)) is not None]
            if (path := _counted(folder)) is not None:
                gate_counts.append(read_stage_json(path, lambda counts: GateCounts(**counts)))
    return Results(runs=tuple(runs), gate_counts=tuple(gate_counts))


def _counted(folder: Path) -> Path | None:
    return next((folder / name for name in (GATE_COUNTS, "left_out.json") if (folder / name).is_file()), None)


def _read_run(folder: Path, percent: int, seed: int, system: str) -> StudyRun | None:
    if not (folder / "runs" / system / SUMMARY).is_file():
        return None
    summary = read_summary(folder / "runs" / system)
    return StudyRun(
        percent=percent,
        seed=seed,
        system=system,
        ccc={dimension: summary.ccc[dimension] for dimension in DIMENSIONS},
        best_epoch=summary.best_epoch,
        seconds=summary.seconds,
        distilled_fraction=summary.distilled_fraction,
    )


def write_gate_counts(study: Study, percent: int, seed: int) -> None:
    """Count whom a chain's condition rejects, and store it in its folder; nothing where that has been done."""
    folder = study.chain_folder(percent, seed)
    if _counted(folder) is not None:
        return
    shares = distilled_shares(read_run(folder / "runs" / "cts" / "run.toml"))
    wrong = wrong_keys(study.share_folder(percent) / "corpus")
    counted = count_rejected([key in wrong for key in shares], list(shares.values()), percent=percent, seed=seed)
    atomic_write(folder / GATE_COUNTS, (json.dumps(asdict(counted), indent=1) + "\n").encode())


def distilled_shares(run: RunConfig) -> dict[str, float]:
    """By key of each training utterance, the share of it that the run's gate lets be distilled, 0..1.

    With gate "per-dimension" that is the share of its dimensions, with "soft" its weight, with all others 0 or 1.
    """
    shard_set = open_shard_set(run.data.shards)
    cache = open_teacher_cache(run.data.teacher_cache, shard_set)
    run, condition = resolved_on_ranks(run, cache, shard_set, Ranks())
    assert run.distill is not None
    assert condition is not None
    threshold = run.distill.threshold_or_default
    row_gate = row_gate_of(run.distill, run.seed)
    shares: dict[str, float] = {}
    for shard in shard_set.shards_of(run.data.train_splits):
        rows = shard_set.rows(shard.name)
        predicted = [cache.read(rows.shard, row, key).prediction for row, key in enumerate(rows.keys)]
        prediction = torch.from_numpy(np.stack(predicted))
        label = torch.from_numpy(np.stack([rows.labels[target] for target in cache.targets], axis=1))
        admitted = None
        if row_gate is not None:
            admitted = torch.tensor([row_gate.admits(shard_set, rows, row) for row in range(len(rows.keys))])
        weight = torch.ones(len(predicted))
        gate_mask = apply_gate(run.distill.gate, threshold, condition, prediction, label, weight, admitted)
        of_rows = gate_mask.double() if gate_mask.dim() == 1 else gate_mask.double().mean(dim=1)
        shares |= dict(zip(rows.keys, of_rows.tolist(), strict=True))
    return shares


def count_rejected(wrong: Sequence[bool], distilled: Sequence[bool | float], *, percent: int, seed: int) -> GateCounts:
    """Rejected utterances: how many with a wrong transcript, and how many others.

    Args:
        wrong: whether each has a wrong transcript.
        distilled: the share of each that is distilled, 0..1.
        percent: of wrong transcripts; recorded.
        seed: the chain's; recorded.
    """
    both = list(zip(wrong, distilled, strict=True))
    return GateCounts(
        percent=percent,
        seed=seed,
        num_wrong=sum(wrong),
        num_right=len(both) - sum(wrong),
        wrong_rejected=sum(1 - share for is_wrong, share in both if is_wrong),
        right_rejected=sum(1 - share for is_wrong, share in both if not is_wrong),
    )
