"""What is told about a step: the names and numbers that go to the tracker and into the history."""

from collections.abc import Mapping
from math import isfinite

import torch

from ccts_dist.config import RunConfig
from ccts_dist.train.optim import rates_by_group
from ccts_dist.train.step import StepResult


def step_figures(
    result: StepResult, run: RunConfig, optimizer: torch.optim.Optimizer, num_skipped: int
) -> dict[str, float]:
    """A step's figures by their names; some may not be finite.

    Args:
        result: the step.
        run: names the targets, and says whether there is a teacher.
        optimizer: after the step; gives the learning rates.
        num_skipped: steps of the run so far that moved no weights.
    """
    figures = {"train/loss": result.loss, "train/loss_ccc": result.ccc_loss}
    figures |= {f"train/ccc_{target}": value for target, value in zip(run.model.targets, result.ccc, strict=True)}
    if run.model.categories:
        figures["train/loss_category"] = result.category_loss
    if run.data.teacher:
        figures |= {
            "train/loss_embedding": result.embedding_loss,
            "train/loss_prediction": result.prediction_loss,
            "train/kept_share": result.num_kept / max(1, result.num_rows),
        }
    if result.kept_in:  # with a gate per dimension; the share above is then their mean
        kept = zip(run.model.targets, result.kept_in, strict=True)
        figures |= {f"train/kept_share_{target}": num_kept / max(1, result.num_rows) for target, num_kept in kept}
    if result.update is not None:
        figures["train/gradient_norm"] = result.update.gradient_norm
    figures |= {f"train/learning_rate_{name}": rate for name, rate in rates_by_group(optimizer).items()}
    figures["train/skipped_steps"] = float(num_skipped)
    if run.data.damaged == "skip":
        figures["train/damaged_utterances"] = float(result.num_damaged)
    return figures


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures that a tracking server takes: without NaN and infinities, which some stores refuse."""
    return {name: value for name, value in figures.items() if isfinite(value)}
