"""The training loop: epochs of steps, validation, the best model, checkpoints, and what is told about it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import torch

from ccts_dist.config import run_to_tree
from ccts_dist.distributed import Ballot, attempt, barrier, gather_objects, sum_over_ranks, together
from ccts_dist.errors import ShardError, StopRequested, TrainingError
from ccts_dist.model.folder import load_model, save_model
from ccts_dist.progress import Progress, say
from ccts_dist.records import StepBatches
from ccts_dist.tracking.protocol import Tracking
from ccts_dist.train.checkpoint import TrainState, write_checkpoint
from ccts_dist.train.engine import Engine
from ccts_dist.train.evaluate import Scores, evaluate
from ccts_dist.train.figures import finite, step_figures
from ccts_dist.train.history import History
from ccts_dist.train.optim import Schedule
from ccts_dist.train.peak import peak_over_ranks_gb
from ccts_dist.train.run_folder import RunFolder
from ccts_dist.train.setup import Session
from ccts_dist.train.step import StepResult, train_step
from ccts_dist.train.storage import writing
from ccts_dist.train.watch import Watch

_MOST_KEYS = 256
"""Of a batch in an error message: more are a screen that nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended."""

    steps: int
    best_epoch: int
    valid: dict[str, float | None]
    """CCC of the best model on the validation splits; None for a target without labels there."""

    test: dict[str, float]
    """CCC of the best model on the test splits; empty without any."""

    test_sums: dict[str, list[float]]
    """What ``test`` comes from, to be pooled with another run's: see ``SplitSums.pooled``."""

    kept_share: float | None
    """Share of the training utterances that were distilled; None without a teacher."""

    seconds: float
    """Of this start of the program, not of those before a resume."""

    peak_memory_gb: float
    """Most memory that a rank held (10^9 bytes; on a GPU by its tensors, else resident), also of this start alone."""


class Trainer:
    """A training under way. Every method is called by every rank."""

    def __init__(
        self,
        session: Session,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        folder: RunFolder,
        tracking: Tracking,
        state: TrainState,
        watch: Watch,
    ) -> None:
        self._session, self._run = session, session.run
        self._engine, self._optimizer, self._schedule = engine, optimizer, schedule
        self._folder, self._tracking = folder, tracking
        self.state = state
        self._watch = watch
        self._first = session.ranks.is_first
        self._history: History | None = None
        self._saved_place = self._place()
        self._saved_at = time.monotonic()

    def train(self) -> Outcome:
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
            self._watch.met()
            if self._place() != self._saved_place:
                self._checkpoint()
            self._watch.saved()
            raise

    def _train_all(self) -> None:
        self._history = self._folder.open_history(self.state.step)
        try:
            # Stopped after the last step of an epoch that max_steps cuts short, before its validation.
            if self._is_enough() and self.state.step_in_epoch and not self.state.finished:
                self._train_epoch()
            while self._has_more():
                self.state.finished = False  # it was, if the run ended here under a lower limit
                self._train_epoch()
        finally:
            if self._history is not None:
                self._history.close()
            self._session.close()
        together(self._check)
        if not self.state.finished:
            self._save_model("last", {})
            self.state.finished = True
            self._checkpoint()

    def _place(self) -> tuple[int, int, int, bool]:
        """What distinguishes two states that are both worth a checkpoint."""
        return self.state.step, self.state.epoch, self.state.step_in_epoch, self.state.finished

    def _has_more(self) -> bool:
        return self.state.epoch < self._run.train.epochs and not self._is_enough()

    def _is_enough(self, more: int = 0) -> bool:
        """Whether the run's limit is reached after so many more steps."""
        limit = self._run.train.max_steps
        return bool(limit) and self.state.step + more >= limit

    def _check(self) -> None:
        """Raise what only this rank knows of yet; all get to know where ranks meet."""
        if self._history is not None:
            self._history.check()
        self._watch.check()

    def _train_epoch(self) -> None:
        state, loader = self.state, self._session.loader
        self._engine.train(True)
        began, steps_before = time.monotonic(), state.step_in_epoch
        what = f"epoch {state.epoch + 1}/{self._run.train.epochs}"
        with Progress(
            loader.steps_per_epoch, what, unit="step", visible=self._first, start=state.step_in_epoch
        ) as progress:
            source = loader.epoch(state.epoch, state.step_in_epoch)
            ballot = self._read_ahead(source, what, 0)
            votes = sum_over_ranks(ballot.votes).tolist()
            while state.step_in_epoch < loader.steps_per_epoch and not self._is_enough():
                batches, save = ballot.settle(*votes)
                if save and self._place() != self._saved_place:
                    self._checkpoint()
                # What comes of reading the next batch rides along with the loss: ranks wait for each other once less.
                ballot = self._read_ahead(source, what, 1)
                self._watch.at(f"{what}, step {state.step_in_epoch + 1}", brief=True)
                result = train_step(
                    self._engine, batches, self._session.objective, seed=self._run.seed, aside=ballot.votes
                )
                votes = result.aside
                self._count(result, batches)
                self._report_step(result, batches)
                self._count_damaged(result, batches)
                left_out = f", {state.num_skipped} skipped" if state.num_skipped else ""
                progress.advance(figures=f"loss {result.loss:.3f}{left_out}")
                every = self._run.train.checkpoint_steps
                ends_epoch = state.step_in_epoch == loader.steps_per_epoch
                if every and state.step % every == 0 and not ends_epoch and not self._is_enough():
                    self._checkpoint()
        steps = state.step_in_epoch - steps_before
        self._end_epoch(steps / max(1e-9, time.monotonic() - began))

    def _read_ahead(self, source: Iterator[StepBatches], what: str, steps: int) -> Ballot[StepBatches]:
        """The batches of the step that comes after so many more; nobody asks for the answer where there is none."""
        number = self.state.step_in_epoch + steps
        if number >= self._session.loader.steps_per_epoch or self._is_enough(steps):
            return Ballot(None, None)

        def read() -> StepBatches:
            self._watch.at(f"{what}, step {number + 1}: reading", brief=True)
            batches = next(source)
            self._check()
            return batches

        return attempt(read, wish=self._is_time())

    def _is_time(self) -> bool:
        """Whether this rank's clock asks for a checkpoint; rank 0's alone is asked."""
        minutes = self._run.train.checkpoint_minutes
        return self._first and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def _count(self, result: StepResult, batches: StepBatches) -> None:
        state = self.state
        state.step += 1
        state.step_in_epoch += 1
        self._schedule.after_step()
        left_out = result.update is None or result.update.skipped
        state.num_skipped += left_out
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if left_out else 0
        if state.skipped_in_a_row >= self._run.train.most_skipped_in_a_row:
            self._give_up(batches)
        if not left_out:
            sums = {"steps": 1.0, "loss": result.loss, "kept": result.num_kept, "rows": result.num_rows}
            sums |= {"padding": sum(batch.padding for batch in batches.passes) / len(batches.passes)}
            for name, value in sums.items():
                state.epoch_sums[name] = state.epoch_sums.get(name, 0.0) + value

    def _give_up(self, batches: StepBatches) -> None:
        """Raises: TrainingError, on all ranks alike, with the keys of the global batch."""
        own = [(key, w) for batch in batches.passes for key, w in zip(batch.keys, batch.weight.tolist(), strict=True)]
        keys = sorted(key for theirs in gather_objects([key for key, w in own if w > 0]) for key in theirs)
        shown = ", ".join(keys[:_MOST_KEYS]) + (f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else "")
        raise TrainingError(
            f"step {self.state.step}: {self.state.skipped_in_a_row} steps in a row without a finite loss and gradient "
            f"(train.most_skipped_in_a_row); weights and optimizer are as before them. Look at the last batch, lower "
            f"optim.learning_rate, or set optim.clip_norm. The last batch: {shown}"
        )

    def _count_damaged(self, result: StepResult, batches: StepBatches) -> None:
        """Say which damaged utterances a step left out; every rank knows that there are some, and all stop together."""
        if not result.num_damaged:
            return
        sums = self.state.epoch_sums
        sums["damaged"] = sums.get("damaged", 0.0) + result.num_damaged
        own = [words for batch in batches.passes for words in batch.damaged]
        damaged = [words for theirs in gather_objects(own) for words in theirs]
        self._allow_damaged(damaged, int(sums["damaged"]), f"epoch {self.state.epoch + 1}")

    def _allow_damaged(self, damaged: Sequence[str], count: int, where: str) -> None:
        """Raises: ShardError, on all ranks alike, when more than ``data.max_damaged`` were skipped."""
        for words in damaged:
            say(f"skipped: {words}", visible=self._first)
        limit = self._run.data.max_damaged
        if count > limit:
            raise ShardError(
                f"{where}: {count} damaged utterances, and data.max_damaged={limit}. Run shards/check.py on "
                f"{self._run.data.shards}, and mend what it names. The last: {damaged[-1]}"
            )

    def _report_step(self, result: StepResult, batches: StepBatches) -> None:
        if not self._first:
            return
        figures = step_figures(result, self._run, self._optimizer, self.state.num_skipped)
        self._tracking.metrics(finite(figures), self.state.step)
        assert self._history is not None
        self._history.write({"step": self.state.step, "epoch": batches.epoch, "keys": result.key_checksum, **figures})

    def _end_epoch(self, steps_per_s: float) -> None:
        state = self.state
        scores = self._validate()
        self._schedule.after_validation(scores.loss)
        sums = state.epoch_sums
        steps = max(1.0, sums.get("steps", 0.0))
        figures = {
            "epoch/train_loss": sums.get("loss", 0.0) / steps,
            "epoch/padding": sums.get("padding", 0.0) / steps,
            "system/peak_memory_gb": peak_over_ranks_gb(self._engine.device),
            "valid/loss": scores.loss,
            **{f"valid/ccc_{target}": value for target, value in scores.ccc.items()},
        }
        if steps_per_s > 0:  # not when a stopped run only validates
            figures["epoch/utterances_per_s"] = steps_per_s * self._session.loader.plan.largest_batch
        if self._session.objective.distill is not None:
            state.kept_share = sums.get("kept", 0.0) / max(1.0, sums.get("rows", 0.0))
            figures["epoch/kept_share"] = state.kept_share
        self._tracking.metrics(finite(figures), state.step)
        # The first one counts even if it is not a number: a run always leaves a best model, however bad.
        better = state.best_epoch < 0 or scores.loss < (inf if state.best_loss is None else state.best_loss)
        ccc = "  ".join(f"{target} {value:.3f}" for target, value in scores.ccc.items())
        say(
            f"epoch {state.epoch + 1}: train loss {figures['epoch/train_loss']:.4f}, "
            f"validation loss {scores.loss:.4f}{' (best)' if better else ''}, CCC {ccc}",
            visible=self._first,
        )
        if better:
            state.best_loss, state.best_epoch = scores.loss if isfinite(scores.loss) else None, state.epoch
            self._save_model("best", scores.ccc)
        if not self._is_enough() or state.step_in_epoch == self._session.loader.steps_per_epoch:
            state.epoch += 1
            state.step_in_epoch = 0
            state.epoch_sums = {}
        if self._has_more():
            self._checkpoint()

    def _validate(self) -> Scores:
        self._engine.train(False)
        loader = self._session.valid_loader
        with Progress(loader.steps_per_epoch, "validating", unit="step", visible=self._first) as progress:
            return self._score(self._engine.forward, loader, progress, "validating")

    def _check_at(self, what: str) -> None:
        self._check()
        self._watch.at(what, brief=True)

    def _score(self, forward: Any, loader: Any, progress: Progress, what: str) -> Scores:
        scores = evaluate(
            forward,
            loader,
            self._run.model.targets,
            self._session.objective.target_weights,
            self._engine.device,
            advance=progress.advance,
            check=lambda: self._check_at(what),
        )
        self._allow_damaged(scores.damaged, len(scores.damaged), "evaluation")
        return scores

    def _checkpoint(self) -> None:
        self._watch.at("saving a checkpoint")
        together(lambda: self._folder.check_there() if self._first else None)
        self.state.schedule = self._schedule.state()
        self._tracking.flush()
        write_checkpoint(
            self._folder.path,
            self.state,
            run=run_to_tree(self._run),
            plan_digest=self._session.loader.plan.digest,
            ranks=self._session.ranks,
            save_engine=self._engine.save,
            keep=self._run.train.keep_checkpoints,
        )
        self._saved_place, self._saved_at = self._place(), time.monotonic()

    def _save_model(self, name: str, valid: Mapping[str, float]) -> None:
        self._watch.at(f"saving the {name} model")
        state = self._engine.full_state()
        manifest = self._session.shard_set.manifest
        teacher = self._session.teacher
        extra = {
            "run": self._run.name,
            "seed": self._run.seed,
            "step": self.state.step,
            "epoch": self.state.epoch,
            "valid_ccc": {target: value if isfinite(value) else None for target, value in valid.items()},
            "train_splits": list(self._run.data.train_splits),
            "shards": self._session.shard_set.digest,
            "corpus": manifest.corpus,
            "teacher_cache": teacher.digest if teacher else "",
        }

        def save() -> None:
            self._folder.check_there()
            with writing(self._folder.path / name):
                save_model(
                    self._folder.path / name,
                    state,
                    self._run.model,
                    encoders=self._session.model.encoder_configs,
                    tokenizer=self._session.tokenizer,
                    scale=(manifest.scale[0], manifest.scale[1]),
                    extra=extra,
                )

        together(lambda: save() if self._first else None)

    def _finish(self, seconds: float) -> Outcome:
        """Score the best model, from its folder as a user would load it."""
        self._watch.at("loading the best model")
        best = self._folder.path / "best"
        loaded = load_model(best)
        test: dict[str, float] = {}
        test_sums: dict[str, list[float]] = {}
        if self._run.data.test_splits:
            model = loaded.model.to(self._engine.device).eval()
            loader = self._session.test_loader()
            with Progress(loader.steps_per_epoch, "testing", unit="step", visible=self._first) as progress:
                scores = self._score(
                    lambda batch: model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens),
                    loader,
                    progress,
                    "testing",
                )
            loader.close()
            test, test_sums = scores.ccc, scores.sums
            self._tracking.metrics(
                finite({f"test/ccc_{target}": value for target, value in test.items()}), self.state.step
            )
        self._watch.at("writing the summary")
        outcome = Outcome(
            steps=self.state.step,
            best_epoch=self.state.best_epoch + 1,
            valid=loaded.extra["valid_ccc"],
            test=test,
            test_sums=test_sums,
            kept_share=self.state.kept_share,
            seconds=seconds,
            peak_memory_gb=peak_over_ranks_gb(self._engine.device),
        )
        self._folder.write_file("summary.json", json.dumps(asdict(outcome), indent=1))
        return outcome
