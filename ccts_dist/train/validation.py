"""Validation: how good the model is, which one is the best, and whether it still gets better."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf, isfinite
from typing import Any

from ccts_dist.model.emotion import EmotionModel
from ccts_dist.model.folder import LoadedModel
from ccts_dist.progress import Progress, log
from ccts_dist.scoring.predict_split import Scores, evaluate, pooled_scores
from ccts_dist.shards.format.schema import escape_key
from ccts_dist.train.checkpoints.history import History
from ccts_dist.train.context import TrainContext, save_trained
from ccts_dist.train.memory.peak import peaks_over_ranks_gb
from ccts_dist.train.metrics import finite
from ccts_dist.train.resilience.skipped_steps import allow_damaged


class Validator:
    """Validates a training and keeps its best model. Every method is called by every rank.

    Args:
        context: of the training; ``state`` is given what came of each validation.
        check: raises what only this rank knows of yet; called before each step.
    """

    def __init__(self, context: TrainContext, check: Callable[[], object]) -> None:
        self._context, self._check = context, check
        self._history: History | None = None

    def open(self) -> None:
        """Go on with the file of validations."""
        self._history = self._context.folder.open_history(self._context.state.validated_step, "validations.jsonl")

    def close(self) -> None:
        """No more validations for now."""
        if self._history is not None:
            self._history.close()

    def check(self) -> None:
        """Raises: OutputError, on rank 0 alone, when a validation could not be written down."""
        if self._history is not None:
            self._history.check()

    @property
    def should_stop_early(self) -> bool:
        """True if there was no better model for ``train.early_stopping_patience`` validations."""
        limit = self._context.run.train.early_stopping_patience
        return 0 < limit <= self._context.state.since_best

    def is_due(self, steps_per_epoch: int) -> bool:
        """True if the model, as it is after a step within an epoch, is yet to be validated.

        Also after a resume: a run may have been stopped while it validated.
        """
        every, state = self._context.run.train.eval_steps, self._context.state
        within = 0 < state.step_in_epoch < steps_per_epoch
        return every > 0 and within and state.step % every == 0 and state.validated_step != state.step

    def validate(self, words: str, metrics: Mapping[str, float]) -> None:
        """Score the model, report of it, and keep it if it is the best so far; leaves it in evaluation mode.

        With ``train.ema_decay`` the model is the average of the weights.

        Training goes on as if nothing had been: each of its forward passes draws from a random state of its own.

        Args:
            words: what is reported before the scores.
            metrics: what is reported with them.
        """
        with self._context.engine.averaged():
            self._validate(words, metrics)

    def _validate(self, words: str, metrics: Mapping[str, float]) -> None:
        context, state = self._context, self._context.state
        scores = self._scores()
        context.schedule.after_validation(scores.loss)
        held_gb, reserved_gb = peaks_over_ranks_gb(context.engine.device)
        metrics = {
            **metrics,
            "system/peak_memory_gb": held_gb,
            **({} if reserved_gb is None else {"system/peak_memory_reserved_gb": reserved_gb}),
            "valid/loss": scores.loss,
            **_metrics_of("valid", scores),
        }
        context.tracking.metrics(finite(metrics), state.step)
        # The first one counts even if it is not a number: a run always leaves a best model, however bad.
        better = state.best_epoch < 0 or scores.criterion < (inf if state.best_loss is None else state.best_loss)
        best = " (best)" if better else ""
        log(f"{words}validation loss {scores.loss:.4f}{best}, {scores_in_words(scores)}", visible=context.is_first)
        if better:
            criterion = scores.criterion
            state.best_loss, state.best_epoch = criterion if isfinite(criterion) else None, state.epoch
            save_trained(context, "best", scores.ccc)
        state.since_best = 0 if better else state.since_best + 1
        state.validated_step = state.step
        if self._history is not None:
            self._history.write({"step": state.step, "epoch": state.epoch, "best": better, **metrics})
        if self.should_stop_early:
            what = "validation loss has not fallen" if scores.ccc else "unweighted accuracy has not risen"
            log(
                f"the {what} {state.since_best} times in a row (train.early_stopping_patience): training ends "
                f"after step {state.step}",
                visible=context.is_first,
            )

    def test(self, loaded: LoadedModel) -> dict[str, Scores]:
        """Scores of a model on each test split, which are tracked as well; those of several pooled under "test/"."""
        context, splits = self._context, self._context.run.data.test_splits
        model = loaded.model.to(context.engine.device).eval()
        found = {split: self._test(model, split) for split in splits}
        if len(found) > 1:
            for split, scores in found.items():
                context.tracking.metrics(finite(_metrics_of(f"test/{escape_key(split)}", scores)), context.state.step)
        if found:
            context.tracking.metrics(
                finite(_metrics_of("test", pooled_scores(list(found.values())))), context.state.step
            )
        return found

    def _test(self, model: EmotionModel, split: str) -> Scores:
        context = self._context
        loader = context.experiment.test_loader(split)
        with Progress(loader.steps_per_epoch, "testing", unit="step", visible=context.is_first) as progress:
            scores = self._score(
                lambda batch: model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens),
                loader,
                progress,
                "testing",
                ranked=True,
            )
        loader.close()
        return scores

    def _scores(self) -> Scores:
        context = self._context
        context.engine.train(False)
        loader = context.experiment.valid_loader
        with Progress(loader.steps_per_epoch, "validating", unit="step", visible=context.is_first) as progress:
            return self._score(context.engine.forward, loader, progress, "validating")

    def _check_at(self, what: str) -> None:
        self._check()
        self._context.watchdog.at(what, brief=True)

    def _score(self, forward: Any, loader: Any, progress: Progress, what: str, *, ranked: bool = False) -> Scores:
        context = self._context
        scores = evaluate(
            forward,
            loader,
            context.run.model.targets,
            context.experiment.objective.target_weights,
            context.engine.device,
            extras=replace(context.experiment.extras, spearman=ranked),
            advance=progress.advance,
            check=lambda: self._check_at(what),
        )
        allow_damaged(scores.damaged, len(scores.damaged), "evaluation", context.run, visible=context.is_first)
        return scores


def scores_in_words(scores: Scores) -> str:
    """The CCC of each target, and the categories' unweighted accuracy."""
    ccc = "  ".join(f"{target} {value:.3f}" for target, value in scores.ccc.items())
    parts = [f"CCC {ccc}"] if ccc else []
    if scores.categories:
        parts.append(f"categories: unweighted accuracy {scores.categories['unweighted_accuracy']:.3f}")
    return "; ".join(parts)


def _metrics_of(split: str, scores: Scores) -> dict[str, float]:
    """Figures by the names under which they are tracked."""
    metrics = {f"{split}/ccc_{target}": value for target, value in scores.ccc.items()}
    if scores.spearman:  # of a test: correlations stand beside CCC
        metrics |= {f"{split}/pearson_{target}": value for target, value in scores.pearson.items()}
        metrics |= {f"{split}/spearman_{target}": value for target, value in scores.spearman.items()}
    metrics |= {f"{split}/unweighted_recall_{target}": value for target, value in scores.unweighted_recall.items()}
    if not scores.ccc:  # what chooses the best model
        metrics[f"{split}/uar"] = scores.categories["unweighted_accuracy"]
    return metrics | {f"{split}/category_{figure}": value for figure, value in scores.categories.items()}
