"""The gate study: chains of stages, several side by side; what is done is not done again."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from ccts_dist.errors import StageError
from ccts_dist.report.gate_study.corpora import read_facts
from ccts_dist.report.gate_study.files import write_results
from ccts_dist.report.gate_study.forked import run_forked
from ccts_dist.report.gate_study.plan import Cell, GateStudy, chains, corpus_stages, count_stages, stages_of
from ccts_dist.report.stages import Stage, raise_failures, run_stages
from ccts_dist.report.study.study import StudyProgress

NOMINAL_S: Mapping[str, float] = defaultdict(lambda: 7.0, {"corpus": 14.0})
"""Seconds of a stage on one core, for the first guess of the time to go."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def run_gate_study(study: GateStudy) -> str:
    """Run what is missing of the study and give its page, in Markdown; see ``write_results`` for what it leaves.

    Raises:
        StageError: stages failed, and every chain without such a one was run to its end; what is done stays done.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    every_chain = chains(study)
    progress = StudyProgress(
        [stage for chain in every_chain for stage in _all_stages(study, *chain)], study.jobs, NOMINAL_S
    )
    chain = _Chains(study, progress)
    with ThreadPoolExecutor(study.jobs) as pool:
        futures = [pool.submit(chain.run, *one) for one in every_chain]
        try:
            errors = [error for future in futures if (error := future.exception()) is not None]
        except BaseException:  # interrupted: the stages that have begun are waited for, nothing else is begun
            chain.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    raise_failures(errors)
    return write_results(study)


def _all_stages(study: GateStudy, seed: int, part: tuple[Cell, ...]) -> list[Stage]:
    """Stages of a chain, whatever its corpus states of itself."""
    unknown: Mapping[str, Mapping[str, str]] = defaultdict(lambda: {"keys": "", "rejected": "", "confidence": ""})
    trained = [stage for cell in part for stage in stages_of(study, seed, cell, unknown)]
    return [*corpus_stages(study, seed, part), *trained, *count_stages(study, seed, part)]


class _Chains:
    """Runs chains; those of one seed one after the other, since they share its corpus."""

    def __init__(self, study: GateStudy, progress: StudyProgress) -> None:
        self._study, self._progress = study, progress
        self._writing, self.stopping = threading.Lock(), threading.Event()
        self._seeds = {seed: threading.Lock() for seed in study.seeds}

    def run(self, seed: int, part: tuple[Cell, ...]) -> None:
        """One part of a seed; then the page of what there is."""
        with self._seeds[seed]:
            self._run(seed, corpus_stages(self._study, seed, part))
            facts = read_facts(self._study.seed_folder(seed))
            self._run(seed, [stage for cell in part for stage in stages_of(self._study, seed, cell, facts)])
            self._run(seed, count_stages(self._study, seed, part))
        with self._writing:
            write_results(self._study)

    def _run(self, seed: int, stages: list[Stage]) -> None:
        run_stages(
            stages, self._study.seed_folder(seed), environment=ENVIRONMENT, title=f"seed{seed}",
            after_each=self._advance, run=run_forked,
        )  # fmt: skip

    def _advance(self, stage: Stage, seconds: float) -> None:
        self._progress.advance(stage, seconds)
        if self.stopping.is_set():
            raise StageError("the study was interrupted. Run it again to go on.")
