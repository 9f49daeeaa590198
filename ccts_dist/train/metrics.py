"""Metrics of a step: the names and numbers that go to the tracker and into the history."""

from collections.abc import Mapping, MutableMapping
from math import isfinite

import torch

from ccts_dist.config import RunConfig
from ccts_dist.config.schema import THRESHOLD_GATES
from ccts_dist.train.optim import rates_by_group
from ccts_dist.train.steps.step import StepResult

_MEANS = ("train/loss", "train/ccc_", "train/grad_norm")
"""How the names of a step's figures begin whose means are informed of an epoch."""


def step_metrics(
    result: StepResult, run: RunConfig, optimizer: torch.optim.Optimizer, num_skipped: int
) -> dict[str, float]:
    """A step's figures by their names; some may not be finite.

    Args:
        result: the step.
        run: names the targets, and states whether there is a teacher.
        optimizer: after the step; gives the learning rates.
        num_skipped: steps of the run so far that moved no weights.
    """
    metrics = {"train/loss": result.loss}
    if run.model.targets:
        metrics["train/loss_ccc"] = result.ccc_loss
    metrics |= {f"train/ccc_{target}": value for target, value in zip(run.model.targets, result.ccc, strict=True)}
    if run.model.categories:
        metrics["train/loss_category"] = result.category_loss
    if run.data.teacher_cache:
        metrics |= {
            "train/loss_embedding": result.embedding_loss,
            "train/loss_prediction": result.prediction_loss,
            "distill/fraction": result.num_distilled / max(1, result.num_rows),
        }
        if run.distill is not None and run.distill.gate in THRESHOLD_GATES and run.distill.threshold is not None:
            metrics["distill/threshold"] = run.distill.threshold
    if result.num_distilled_per_dim:  # with a gate per dimension; the share above is then their mean
        of_targets = zip(run.model.targets, result.num_distilled_per_dim, strict=True)
        metrics |= {
            f"distill/fraction_{target}": num_distilled / max(1, result.num_rows)
            for target, num_distilled in of_targets
        }
    if result.update is not None:
        metrics["train/grad_norm"] = result.update.gradient_norm
    metrics |= {f"train/lr_{name}": rate for name, rate in rates_by_group(optimizer).items()}
    metrics["train/skipped_steps"] = float(num_skipped)
    if run.data.on_corrupt == "skip":
        metrics["data/corrupt_utterances"] = float(result.num_damaged)
    return metrics


def add_to_epoch(
    sums: MutableMapping[str, float], result: StepResult, metrics: Mapping[str, float], metered: Mapping[str, float]
) -> None:
    """Count a step in the running sums of its epoch; one that moved no weights only as such.

    Args:
        sums: are written into checkpoints, so that an epoch that is gone on with has the figures of the whole one.
        metrics: of the step, by ``step_metrics``.
        metered: likewise, by ``ThroughputMonitor``.
    """
    if result.update is None or result.update.skipped:
        own = {"skipped": 1.0}
    else:
        means = {name: value for name, value in metrics.items() if name.startswith(_MEANS) and isfinite(value)}
        own = {"steps": 1.0, "distilled": result.num_distilled, "rows": float(result.num_rows)}
        own |= {"padding": metered["train/padding"], "audio_s": metered["train/audio_s"]}
        own |= means | {f"number of {name}": 1.0 for name in means}
    for name, value in own.items():
        sums[name] = sums.get(name, 0.0) + value


def epoch_metrics(
    sums: Mapping[str, float], steps_per_s: float, *, largest_batch: int, distils: bool
) -> dict[str, float]:
    """An epoch's figures by their names: means over its steps, and how fast it went.

    Args:
        sums: by ``add_to_epoch``.
        steps_per_s: 0 when none was taken, as by a stopped run that only validates.
        largest_batch: utterances of a step.
        distils: whether there is a teacher.
    """
    steps = max(1.0, sums.get("steps", 0.0))
    metrics = {
        f"epoch/{name.replace('train/', 'train_')}": value / sums[f"number of {name}"]
        for name, value in sums.items()
        if name.startswith("train/")
    }
    metrics |= {"epoch/train_loss": metrics.get("epoch/train_loss", 0.0)}
    metrics |= {"epoch/padding": sums.get("padding", 0.0) / steps, "epoch/skipped_steps": sums.get("skipped", 0.0)}
    if steps_per_s > 0:
        metrics["epoch/utterances_per_s"] = steps_per_s * largest_batch
        metrics["epoch/audio_s_per_s"] = steps_per_s * sums.get("audio_s", 0.0) / steps
    if distils:
        metrics["epoch/distill_fraction"] = sums.get("distilled", 0.0) / max(1.0, sums.get("rows", 0.0))
    return metrics


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Figures that a tracking server takes: without NaN and infinities, which some stores refuse."""
    return {name: value for name, value in metrics.items() if isfinite(value)}
