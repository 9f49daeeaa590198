"""The training loop: epochs of steps, validations between, checkpoints, and what is reported about it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ccts_dist.batches import Batch, StepBatches
from ccts_dist.config.credentials import public_tree
from ccts_dist.device.transfer import SideStream
from ccts_dist.distributed import PendingResult, barrier, capture, run_on_all_ranks, sum_over_ranks
from ccts_dist.errors import StopRequested
from ccts_dist.files.strict_json import json_text
from ccts_dist.model.folder import load_model
from ccts_dist.progress import Progress, log
from ccts_dist.scoring.predict_split import pooled_scores, scores_to_tree
from ccts_dist.train.checkpoints.checkpoint import CheckpointFiles, write_checkpoint
from ccts_dist.train.checkpoints.history import History
from ccts_dist.train.checkpoints.writer import CheckpointWriter
from ccts_dist.train.context import TrainContext, save_trained
from ccts_dist.train.devices import peak_tflops
from ccts_dist.train.memory.peak import peaks_over_ranks_gb
from ccts_dist.train.metrics import add_to_epoch, epoch_metrics, finite, step_metrics
from ccts_dist.train.resilience.skipped_steps import count_damaged, give_up
from ccts_dist.train.speed.step_profile import DATA_WAIT, LOSS, StepProfiler, timed
from ccts_dist.train.speed.throughput import ThroughputMonitor
from ccts_dist.train.steps.step import StepResult, train_step
from ccts_dist.train.steps.two_rounds import TwoRounds
from ccts_dist.train.steps.two_rounds import words as words_of_difference
from ccts_dist.train.validation import Validator


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a training ended."""

    steps: int
    best_epoch: int
    """Which epoch the best model comes from, counted from 1; it may come from within."""

    best_step: int
    """Steps that it was trained for."""

    valid: dict[str, float | None]
    """CCC of the best model on the validation splits; None for a target without labels there."""

    test: dict[str, float]
    """CCC of the best model on the test splits, of several those of their predictions pooled; empty without any."""

    test_sums: dict[str, list[float]]
    """Sums that ``test`` comes from, to be pooled with another run's: see ``SplitSums.pooled``."""

    test_scores: dict[str, Any]
    """Every figure of the best model on the test splits, by figure and target; of several splits those that come from
    sums, pooled. Empty without any."""

    test_by_split: dict[str, Any]
    """Every figure of the best model on each of several test splits, as in ``test_scores``; empty with fewer."""

    distilled_fraction: float | None
    """Share of the training utterances that were distilled; None without a teacher."""

    seconds: float
    """Duration of this start of the program, not of those before a resume."""

    peak_memory_gb: float
    """Most memory that a rank held (10^9 bytes; on a GPU by its tensors, else resident), also of this start alone."""

    peak_memory_reserved_gb: float | None
    """Likewise, most that torch's allocator took of a GPU; None on CPUs."""

    resolved: dict[str, Any]
    """Values that the run used where its run file leaves them open, by dotted key; see ``resolved_values``."""


LONG_STEP_S = 1.0
"""After a step that took longer, ranks meet once more before the next: a request to stop is seen a step earlier."""


NO_GRADIENT = (
    "the gradient of every step of epoch {epoch} was 0, so no weight has moved: the loss depends on no trained "
    "parameter. See whether labels vary within batches, and whether the terms of the loss have a weight"
)


class Trainer:
    """A training under way. Every method is called by every rank."""

    def __init__(self, context: TrainContext, optimizer: torch.optim.Optimizer) -> None:
        self._context, self._optimizer = context, optimizer
        self._experiment, self._run, self._engine = context.experiment, context.run, context.engine
        self._folder, self._tracking, self._watchdog = context.folder, context.tracking, context.watchdog
        self.state = context.state
        self._validator = Validator(context, self._check)
        self._writer = CheckpointWriter(context.experiment.ranks)
        peak = peak_tflops(context.engine.device, context.run.train.precision, override=context.run.train.peak_tflops)
        self._throughput = ThroughputMonitor(
            context.experiment.ranks, context.engine.device, flops=context.flops, peak_tflops=peak
        )
        profiled = context.run.train.profile if context.is_first else ()
        self._profiler = StepProfiler(profiled, context.folder.path, context.engine.device, title=context.run.run_name)
        self._copies = SideStream(context.engine.device)
        self._ahead: PendingResult[StepBatches] = PendingResult(None, None)
        self._moved: Callable[[], tuple[Batch, ...]] | None = None
        self._moved_ahead: Callable[[], tuple[Batch, ...]] | None = None
        self._rounds = TwoRounds(torch.bfloat16 if context.run.train.precision == "bf16" else torch.float32)
        self._difference, self._has_warned = 0.0, False
        self._first = context.is_first
        self._history: History | None = None
        self._saved_place = self._place()
        self._saved_at = time.monotonic()

    def train(self) -> TrainResult:
        """Train from where ``state`` stands to the end, then score the best model on the test splits.

        Raises:
            StopRequested: somebody asked for it, and a complete checkpoint of ``state`` is there.
            CctsError: on all ranks alike; what was checkpointed before stays.
        """
        began = time.monotonic()
        try:
            self._train_all()
            barrier()
            return self._finish(time.monotonic() - began)
        except StopRequested:
            self._watchdog.met()
            if self._place() != self._saved_place:
                self._checkpoint()
            self._writer.wait()
            self._watchdog.saved()
            raise
        finally:
            self._writer.close()

    def _train_all(self) -> None:
        state = self.state
        self._history = self._folder.open_history(state.step)
        self._validator.open()
        try:
            # Stopped after the last step of an epoch that max_steps cuts short, before its validation.
            unjudged = state.step_in_epoch and state.validated_step != state.step
            if self._is_enough() and unjudged and not state.finished:
                self._train_epoch()
            while self._has_more():
                state.finished = False  # it was, if the run ended here under a lower limit
                self._train_epoch()
        finally:
            if self._history is not None:
                self._history.close()
            self._profiler.close()
            self._validator.close()
            self._experiment.close()
        run_on_all_ranks(self._check)
        if not state.finished:
            with self._engine.averaged():
                save_trained(self._context, "last", {})
            state.finished = True
            self._checkpoint()
        self._writer.wait()

    def _place(self) -> tuple[int, int, int, int, bool]:
        """Values that distinguish two states that are both worth a checkpoint."""
        state = self.state
        return state.step, state.epoch, state.step_in_epoch, state.validated_step, state.finished

    def _has_more(self) -> bool:
        more = self.state.epoch < self._run.train.epochs and not self._is_enough()
        return more and not self._validator.should_stop_early

    def _is_enough(self, more: int = 0) -> bool:
        """True if the run's limit is reached after so many more steps."""
        limit = self._run.train.max_steps
        return bool(limit) and self.state.step + more >= limit

    def _check(self) -> None:
        """Raise what only this rank knows of yet; all get to know where ranks meet."""
        if self._history is not None:
            self._history.check()
        self._validator.check()
        self._writer.check()
        self._watchdog.check()

    def _train_epoch(self) -> None:
        state, loader = self.state, self._experiment.loader
        self._engine.train(True)
        what = f"epoch {state.epoch + 1}/{self._run.train.epochs}"
        self._validate_within()  # a run may have been stopped before
        began, steps_before = time.monotonic(), state.step_in_epoch
        with Progress(
            loader.steps_per_epoch, what, unit="step", visible=self._first, start=state.step_in_epoch
        ) as progress:
            source = loader.epoch(state.epoch, state.step_in_epoch)
            ballot, self._moved = self._read_ahead(source, what, 0)
            votes, is_slow, took = sum_over_ranks(ballot.votes).tolist(), 0.0, 0.0
            while self._is_within_epoch():
                started = time.monotonic()
                self._profiler.begin(state.step + 1)
                if is_slow:
                    run_on_all_ranks(
                        self._check
                    )  # a request that came since the batch was read waits for no second long step
                batches, save = ballot.settle(*votes)
                if save and self._place() != self._saved_place:
                    self._checkpoint()
                self._watchdog.at(f"{what}, step {state.step_in_epoch + 1}", brief=True)
                with timed(LOSS):
                    result = train_step(
                        self._engine,
                        batches,
                        self._experiment.objective,
                        seed=self._run.seed,
                        aside=self._aside(source, what, batches, took),
                        moved=self._moved,
                        rounds=self._rounds,
                        graph_samples=self._context.graph_samples,
                    )
                ballot, self._moved = self._ahead, self._moved_ahead
                self._difference = self._rounds.difference()
                *votes, is_slow, difference = result.aside[:4]
                metered = self._throughput.metrics_of(
                    result.aside[4:], num_rows=result.num_rows, seconds=time.monotonic() - started
                )
                self._warn_of(difference)
                self._count(result, batches)
                self._report_step(result, batches, metered)
                count_damaged(state, result.num_damaged, batches, self._run, visible=self._first)
                skipped = f", {state.num_skipped} skipped" if state.num_skipped else ""
                progress.advance(status=f"loss {result.loss:.3f}{skipped}")
                self._profiler.end(state.step)
                took = time.monotonic() - started
                began += self._validate_within()
                every = self._run.train.save_steps
                if every and state.step % every == 0 and self._is_within_epoch():
                    self._checkpoint()
        if self._is_within_epoch(by_validation=False):
            return  # it has stopped early
        steps = state.step_in_epoch - steps_before
        self._end_epoch(steps / max(1e-9, time.monotonic() - began))

    def _is_within_epoch(self, *, by_validation: bool = True) -> bool:
        """True if another step of the epoch is to be taken; ``by_validation`` stops early."""
        there_is = self.state.step_in_epoch < self._experiment.loader.steps_per_epoch and not self._is_enough()
        return there_is and not (by_validation and self._validator.should_stop_early)

    def _validate_within(self) -> float:
        """Validate if it is time to, other than at the end of an epoch; the seconds that it took."""
        if self._is_enough() or not self._validator.is_due(self._experiment.loader.steps_per_epoch):
            return 0.0
        began = time.monotonic()
        self._validator.validate(f"epoch {self.state.epoch + 1}, step {self.state.step}: ", {})
        self._engine.train(True)
        return time.monotonic() - began

    def _aside(
        self, source: Iterator[StepBatches], what: str, batches: StepBatches, took: float
    ) -> Callable[[], Tensor]:
        """Values that ride along with the loss, so that ranks wait for each other once less; gathered while the GPU
        works."""

        def numbers() -> Tensor:
            self._ahead, self._moved_ahead = self._read_ahead(source, what, 1)
            self._watchdog.at(f"{what}, step {self.state.step_in_epoch + 1}", brief=True)
            own = torch.tensor([took > LONG_STEP_S, self._difference], dtype=torch.float64)
            return torch.cat([self._ahead.votes, own, self._throughput.aside(batches)])

        return numbers

    def _warn_of(self, difference: float) -> None:
        """Report once of two rounds of forward passes that differ; ``difference`` is added up over ranks."""
        if difference > 0 and not self._has_warned:
            log(f"warning: {words_of_difference(difference)}", visible=self._first)
            self._has_warned = True

    def _read_ahead(
        self, source: Iterator[StepBatches], what: str, steps: int
    ) -> tuple[PendingResult[StepBatches], Callable[[], tuple[Batch, ...]] | None]:
        """The batches of the step that comes after so many more, and they on the device, where they are on their way.

        Nobody asks for the answer where there is no such step.
        """
        number = self.state.step_in_epoch + steps
        if number >= self._experiment.loader.steps_per_epoch or self._is_enough(steps):
            return PendingResult(None, None), None

        def read() -> StepBatches:
            self._watchdog.at(f"{what}, step {number + 1}: reading", brief=True)
            with timed(DATA_WAIT):
                batches = next(source)
            self._check()
            return batches

        ballot = capture(read, wish=self._is_time())
        if ballot.answer is None:
            return ballot, None
        micro_batches = ballot.answer.micro_batches
        return ballot, self._copies.run(lambda: tuple(batch.to(self._engine.device) for batch in micro_batches))

    def _is_time(self) -> bool:
        """True if this rank's clock asks for a checkpoint; rank 0's alone is asked."""
        minutes = self._run.train.save_minutes
        return self._first and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def _count(self, result: StepResult, batches: StepBatches) -> None:
        state = self.state
        state.step += 1
        state.step_in_epoch += 1
        self._context.schedule.after_step()
        skipped = result.update is None or result.update.skipped
        state.num_skipped += skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        if state.skipped_in_a_row >= self._run.train.nonfinite_patience:
            give_up(state, batches)

    def _report_step(self, result: StepResult, batches: StepBatches, metered: Mapping[str, float]) -> None:
        """Report a step; ``metered`` differs from run to run and has no place in the history."""
        metrics = step_metrics(result, self._run, self._optimizer, self.state.num_skipped)
        add_to_epoch(self.state.epoch_sums, result, metrics, metered)
        if not self._first:
            return
        if self.state.step % self._run.tracking.every_steps == 0:
            self._tracking.metrics(finite({**metrics, **metered}), self.state.step)
        assert self._history is not None
        self._history.write({"step": self.state.step, "epoch": batches.epoch, "keys": result.key_checksum, **metrics})

    def _end_epoch(self, steps_per_s: float) -> None:
        state = self.state
        metrics = epoch_metrics(
            state.epoch_sums,
            steps_per_s,
            largest_batch=self._experiment.loader.plan.largest_batch,
            distils=self._experiment.objective.distill is not None,
        )
        if metrics.get("epoch/train_grad_norm") == 0:
            log(f"warning: {NO_GRADIENT.format(epoch=state.epoch + 1)}", visible=self._first)
        distilled_fraction = metrics.get("epoch/distill_fraction", state.distilled_fraction)
        self._validator.validate(f"epoch {state.epoch + 1}: train loss {metrics['epoch/train_loss']:.4f}, ", metrics)
        state.distilled_fraction = distilled_fraction
        if not self._is_enough() or state.step_in_epoch == self._experiment.loader.steps_per_epoch:
            state.epoch += 1
            state.step_in_epoch = 0
            state.epoch_sums = {}
        if self._has_more() and state.epoch % self._run.train.save_epochs == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Write a checkpoint of ``state``, or begin to: ``_writer`` names when it is complete."""
        self._watchdog.at("saving a checkpoint")
        run_on_all_ranks(lambda: self._folder.check_there() if self._first else None)
        self.state.schedule = self._context.schedule.state()
        self._tracking.flush()
        of = {
            "run": public_tree(self._run),
            "plan_digest": self._experiment.plan_digest,
            "ranks": self._experiment.ranks,
            "keep": self._run.train.save_total_limit,
        }
        if self._run.train.async_save:
            self._writer.start(CheckpointFiles(self._folder.path, self.state, **of), self._engine.snapshot)
        else:
            write_checkpoint(self._folder.path, self.state, save_engine=self._engine.save, **of)
        self._saved_place, self._saved_at = self._place(), time.monotonic()

    def _finish(self, seconds: float) -> TrainResult:
        """Score the best model, from its folder as a user would load it."""
        self._watchdog.at("loading the best model")
        loaded = load_model(self._folder.path / "best")
        by_split = self._validator.test(loaded)
        scores = pooled_scores(list(by_split.values())) if by_split else None
        self._watchdog.at("writing the summary")
        held_gb, reserved_gb = peaks_over_ranks_gb(self._engine.device)
        result = TrainResult(
            steps=self.state.step,
            best_epoch=self.state.best_epoch + 1,
            best_step=loaded.extra["step"],
            valid=loaded.extra["valid_ccc"],
            test={} if scores is None else scores.ccc,
            test_sums={} if scores is None else scores.sums,
            test_scores={} if scores is None else scores_to_tree(scores),
            test_by_split={split: scores_to_tree(one) for split, one in by_split.items()} if len(by_split) > 1 else {},
            distilled_fraction=self.state.distilled_fraction,
            seconds=seconds,
            peak_memory_gb=held_gb,
            peak_memory_reserved_gb=reserved_gb,
            resolved=dict(self._context.resolved),
        )
        self._folder.write_file("summary.json", json_text(asdict(result), indent=1))
        return result
