"""The demo study: the demo's systems over several seeds, and students under a growing share of wrong transcripts.

Chains (see ``report.study.plan``) know nothing of each other, so several run side by side, one rank each; what is done
is not done again.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from ccts_dist.errors import StageError
from ccts_dist.progress import log
from ccts_dist.report.stages import Stage, raise_failures, run_stages, stage_environment
from ccts_dist.report.study.files import write_results
from ccts_dist.report.study.plan import Study, Task, order_of_tasks, stages_of
from ccts_dist.report.study.results import write_gate_counts
from ccts_dist.tracking.uri import sqlite_uri

NOMINAL_S = {"shards": 60, "text": 70, "speech": 180, "teacher": 140, "cache": 15, "ts": 190, "cts": 190}
"""Seconds of a stage on one core, for the first guess of the time to go."""


def run_study(study: Study) -> str:
    """Run what is missing of the study and give its tables, in Markdown; see ``write_results`` for what it leaves.

    Raises:
        StageError: commands failed, and every chain without such a one was run to its end; what is done stays done.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    tasks = order_of_tasks(study)
    progress = StudyProgress([stage for task in tasks for stage in stages_of(study, task)], study.jobs)
    workers = _Workers(study, progress)
    workers.prepare(tasks[0])
    with ThreadPoolExecutor(study.jobs) as pool:
        futures: list[Future[None]] = []
        corpora: dict[int, Future[None]] = {}
        try:
            for task in tasks[1:]:
                if task.seed is None:
                    futures.append(pool.submit(workers.prepare, task))
                    corpora[task.percent] = futures[-1]
                else:
                    futures.append(pool.submit(workers.chain, task, corpora.get(task.percent)))
            errors = [error for future in futures if (error := future.exception()) is not None]
        except BaseException:  # interrupted: the stages that have begun are waited for, nothing else is begun
            workers.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    raise_failures(errors)
    return write_results(study)


class StudyProgress:
    """Reports how far the study is, and about how long it takes from here."""

    def __init__(self, stages: Sequence[Stage], jobs: int, nominal_s: Mapping[str, float] = NOMINAL_S) -> None:
        self._nominal_s = nominal_s
        self._left = [nominal_s[stage.name] for stage in stages]
        self._total = len(stages)
        self._jobs = jobs
        self._began = time.monotonic()
        self._took = self._foreseen = 0.0
        self._lock = threading.Lock()

    def advance(self, stage: Stage, seconds: float) -> None:
        """A stage is done."""
        with self._lock:
            nominal = self._nominal_s[stage.name]
            self._left.remove(nominal)
            self._took += seconds
            self._foreseen += nominal
            log(f"study: {self.words(time.monotonic() - self._began)}")

    def words(self, elapsed_s: float) -> str:
        """The progress in a line; finished work gives the speed of the rest."""
        to_go = sum(self._left) * self._took / max(1.0, self._foreseen) / self._jobs
        done = self._total - len(self._left)
        return f"{done} of {self._total} stages, {elapsed_s / 60:.0f} min gone, about {to_go / 60:.0f} min to go"


class _Workers:
    """Runs tasks, each on cores of its own."""

    def __init__(self, study: Study, progress: StudyProgress) -> None:
        self._study, self._progress = study, progress
        self._cores: queue.SimpleQueue[frozenset[int]] = queue.SimpleQueue()
        for cores in share_out(sorted(_cores_at_hand()), study.jobs):
            self._cores.put(cores)
        self._writing, self._stopping = threading.Lock(), threading.Event()

    def stop(self) -> None:
        """Let chains end after the stage that they are in; Ctrl-C on a terminal also reaches that."""
        self._stopping.set()

    def prepare(self, task: Task) -> None:
        """Corpus and shards of a share."""
        folder = self._study.share_folder(task.percent)
        run_stages(
            stages_of(self._study, task), folder, environment={}, title=f"wrong{task.percent}",
            after_each=self._advance,
        )  # fmt: skip

    def chain(self, task: Task, corpus: Future[None] | None) -> None:
        """One seed at one share, once the corpus is there; then the tables of what there is."""
        if corpus is not None:
            corpus.result()
        assert task.seed is not None
        folder = self._study.chain_folder(task.percent, task.seed)
        with self._on_own_cores() as num_cores:
            # A store for each chain: SQLite takes one writer at a time, and lets the others fail.
            environment = stage_environment(sqlite_uri(folder.absolute() / "mlflow.db"))
            environment["OMP_NUM_THREADS"] = str(num_cores)
            run_stages(
                stages_of(self._study, task), folder, environment=environment,
                title=f"wrong{task.percent} seed{task.seed}", after_each=self._advance,
            )  # fmt: skip
        write_gate_counts(self._study, task.percent, task.seed)
        with self._writing:
            write_results(self._study)

    def _advance(self, stage: Stage, seconds: float) -> None:
        self._progress.advance(stage, seconds)
        if self._stopping.is_set():
            raise StageError("the study was interrupted. Run it again to go on.")

    @contextmanager
    def _on_own_cores(self) -> Iterator[int]:
        own, before = self._cores.get(), _cores_at_hand()
        try:
            _stay_on(own)  # this thread, and what it starts
            yield max(1, len(own))
        finally:
            _stay_on(before)
            self._cores.put(own)


def share_out(cores: Sequence[int], jobs: int) -> list[frozenset[int]]:
    """The cores of each job: equal shares; where there are more jobs than cores, jobs share one."""
    if jobs >= len(cores):
        return [frozenset({cores[job % len(cores)]}) for job in range(jobs)]
    each = len(cores) // jobs
    return [frozenset(cores[job * each : (job + 1) * each]) for job in range(jobs)]


def _cores_at_hand() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _stay_on(cores: set[int] | frozenset[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
