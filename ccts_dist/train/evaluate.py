"""Scores of a model on a split, each utterance counted once whatever the ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ccts_dist.distributed import gather_objects, in_step, sum_over_ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.metrics import SplitSums
from ccts_dist.records import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A split's figures by target."""

    ccc: dict[str, float]
    pearson: dict[str, float]
    mae: dict[str, float]
    num_labels: dict[str, int]
    sums: dict[str, list[float]]
    """What the figures come from, to be added to another split's: see ``SplitSums.pooled``."""

    damaged: tuple[str, ...]
    """In words, what was wrong with the utterances that were left out because they are damaged."""

    loss: float
    """sum_j alpha_j (1 - CCC_j) over the whole split; targets without labels are left out. NaN when predictions are."""


def evaluate(
    forward: Callable[[Batch], Any],
    loader: Loader,
    targets: Sequence[str],
    target_weights: Sequence[float],
    device: torch.device,
    *,
    advance: Callable[[], object] = lambda: None,
    check: Callable[[], object] = lambda: None,
) -> Scores:
    """Predict a loader's utterances and score them over all ranks. Every rank must call it; the answer is the same.

    Args:
        forward: the model, in evaluation mode; gives an output with ``prediction``.
        loader: in any order; its batches' size plays no part.
        targets: names of the prediction's columns.
        target_weights: alpha of each target, for the loss.
        device: where the model is.
        advance: called after each step, for a progress bar.
        check: called before each step; what it raises on one rank is raised on all.
    """
    sums = SplitSums(targets)
    damaged: list[str] = []
    with torch.no_grad():
        for step in in_step(loader.epoch(0), loader.steps_per_epoch, check=check):
            for batch in step.passes:
                moved = batch.to(device)
                sums.add(forward(moved).prediction, moved.labels, moved.weight)
                damaged += batch.damaged
            advance()
    whole = SplitSums.from_tensor(targets, sum_over_ranks(sums.to_tensor()))
    ccc = whole.ccc()
    num_labels = whole.num_labels()
    scored = [(alpha, ccc[t]) for alpha, t in zip(target_weights, targets, strict=True) if num_labels[t] >= 2]
    return Scores(
        ccc=ccc,
        pearson=whole.pearson(),
        mae=whole.mae(),
        num_labels=num_labels,
        sums=whole.by_target(),
        damaged=tuple(words for theirs in gather_objects(damaged) for words in theirs),
        loss=sum(alpha * (1 - value) for alpha, value in scored),
    )
