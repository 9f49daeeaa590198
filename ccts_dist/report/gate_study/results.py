"""Results of the gate study, read from its folders, and differences of runs of one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ccts_dist.records import DIMENSIONS
from ccts_dist.report.gate_study.counts import COUNTS
from ccts_dist.report.gate_study.plan import CELLS, Cell, GateStudy
from ccts_dist.report.paired_intervals import Estimate, estimate, paired
from ccts_dist.report.recorded import SUMMARY
from ccts_dist.report.summary import read_stage_json, read_summary
from ccts_dist.scoring.bootstrap_intervals import t_quantile

POWER = 0.8
"""Probability with which an effect of the size that is called detectable is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRun:
    """One training."""

    seed: int
    cell: Cell
    ccc: dict[str, float]
    """On the test split, by dimension."""

    distilled_fraction: float | None
    """Fraction of the training utterances that is distilled; None without a teacher."""

    off_rejected: float | None
    """Share that the gate rejects of the utterances whose words are off; None where that was not counted."""

    sound_rejected: float | None
    """Fraction of the others that is rejected."""


Runs = Sequence[GateRun]


def read_results(study: GateStudy) -> list[GateRun]:
    """Every training that is complete, by cell and seed."""
    runs = []
    for cell in CELLS:
        for seed in study.seeds:
            folder = study.run_folder(seed, cell)
            if not (folder / SUMMARY).is_file():
                continue
            summary = read_summary(folder)
            counted = read_stage_json(folder / COUNTS, dict) if (folder / COUNTS).is_file() else {}
            runs.append(
                GateRun(
                    seed=seed,
                    cell=cell,
                    ccc={dimension: summary.ccc[dimension] for dimension in DIMENSIONS},
                    distilled_fraction=summary.distilled_fraction,
                    off_rejected=counted.get("off"),
                    sound_rejected=counted.get("sound"),
                )
            )
    return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two cells whose runs of one seed are compared."""

    question: str
    cell: Cell
    less: Cell

    def values(self, runs: Runs, dimension: str) -> list[float]:
        """The differences, a seed each."""
        return paired(ccc_of(runs, self.cell, dimension), ccc_of(runs, self.less, dimension))

    def estimate(self, runs: Runs, dimension: str) -> Estimate | None:
        """Their mean and interval; None without a seed."""
        return estimate(self.values(runs, dimension))


def ccc_of(runs: Runs, cell: Cell, dimension: str) -> dict[int, float]:
    """By seed."""
    return {run.seed: run.ccc[dimension] for run in runs if run.cell == cell}


GAIN, FINDS, BOUND = "oracle - random", "condition - random", "oracle - all"
CONFIDENCE = "confidence - random"
TEACHER = "teacher - speech"
DISTILLING = "all - speech"
OTHERS = ("condition - all", "robust - all", "valence - all")
PRIMARY = (GAIN, FINDS, CONFIDENCE)
"""Is there anything to gain; does the condition find it; does a recognizer's confidence."""

_GATES = {
    GAIN: ("oracle", "random as oracle"),
    FINDS: ("condition", "random as condition"),
    CONFIDENCE: ("confidence", "random as oracle"),
    BOUND: ("oracle", "all"),
    **{name: (name.split(" - ")[0], "all") for name in OTHERS},
}


def contrasts(*questions: str) -> list[Contrast]:
    """Contrasts of the cells that the study has."""
    found = []
    for question in questions:
        for cell in CELLS:
            speech = Cell(labels=cell.labels)
            if question == TEACHER:
                other = speech if cell.system == "teacher" else None
            elif question == DISTILLING:
                other = speech if cell.gate == "all" else None
            else:
                gate, less = _GATES[question]
                other = Cell(labels=cell.labels, errors=cell.errors, term=cell.term, gate=less)
                other = other if cell.gate == gate else None
            if other is not None:
                found.append(Contrast(question=question, cell=cell, less=other))
    return sorted(found, key=lambda one: (questions.index(one.question), one.cell.labels, one.cell.term != "embedding"))


def detectable(value: Estimate) -> float:
    """The effect that as many seeds of this spread would show with a probability of ``POWER``; NaN for a single one.

    (t(n - 1, .975) + t(n - 1, .8)) std / sqrt(n).
    """
    if value.count < 2:
        return math.nan
    freedom = value.count - 1
    return (t_quantile(freedom) + t_quantile(freedom, 2 * POWER - 1)) * value.std / math.sqrt(value.count)
