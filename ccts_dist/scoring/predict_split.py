"""Scores of a model on a split, each utterance counted once whatever the ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from ccts_dist.batches import Batch
from ccts_dist.device.arithmetic import exact_float32
from ccts_dist.device.transfer import fetched
from ccts_dist.distributed import gather_objects, lockstep, sum_over_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.losses.category import categorised, cross_entropy_sums, divergence_sums, mean_cross_entropy
from ccts_dist.records import is_rating
from ccts_dist.scoring.measures import ConfusionSums, SplitSums, binned, spearman


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A split's figures by target."""

    ccc: dict[str, float]
    pearson: dict[str, float]
    mae: dict[str, float]
    num_labels: dict[str, int]
    sums: dict[str, list[float]]
    """Sums that the figures come from, to be added to another split's: see ``SplitSums.pooled``."""

    damaged: tuple[str, ...]
    """In words, what was wrong with the utterances that were skipped because they are damaged."""

    loss: float
    """sum_j alpha_j (1 - CCC_j) over the whole split, and the weighted cross-entropy of categories; targets without
    labels are omitted. NaN when predictions are."""

    spearman: dict[str, float] = field(default_factory=dict)
    """Spearman's correlation, where it was asked for."""

    unweighted_recall: dict[str, float] = field(default_factory=dict)
    """By target that is a rating, of labels and predictions sorted into bins; where those were asked for."""

    categories: dict[str, float] = field(default_factory=dict)
    """Scores of a model with categories: weighted_accuracy, unweighted_accuracy, macro_f1 and cross_entropy (in
    nats); with votes kl_to_votes, the mean divergence from their distribution (in nats)."""

    confusion: dict[str, list[float]] = field(default_factory=dict)
    """For each category how often which was predicted, in the same order."""

    @property
    def criterion(self) -> float:
        """The value that the best model has least of: the loss, or of categories alone 1 less their unweighted
        accuracy."""
        return self.loss if self.ccc else 1 - self.categories.get("unweighted_accuracy", nan)


def scores_to_tree(scores: Scores) -> dict[str, Any]:
    """Scores as ``metrics.json`` holds them: figure -> target -> value; null where there is none."""
    return {
        figure: {target: None if one != one else one for target, one in value.items()}
        for figure, value in asdict(scores).items()
        if isinstance(value, dict) and value
    }


def pooled_scores(parts: Sequence[Scores]) -> Scores:
    """The figures of several splits' predictions together; of more than one split those that come from sums alone."""
    if len(parts) == 1:
        return parts[0]
    whole = SplitSums.pooled([one.sums for one in parts])
    return Scores(
        ccc=whole.ccc(),
        pearson=whole.pearson(),
        mae=whole.mae(),
        num_labels=whole.num_labels(),
        sums=whole.by_target(),
        damaged=tuple(words for one in parts for words in one.damaged),
        loss=nan,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Scores beside the targets' CCC; none by default."""

    categories: tuple[str, ...] = ()
    """The model's, if the split knows them."""

    category_weight: float = 0.0
    """Weight of the cross-entropy in the loss."""

    votes: bool = False
    """True if batches have the votes for the categories."""

    bins: tuple[float, ...] = ()
    """Rising edges on 0..1."""

    spearman: bool = False
    """Every prediction and label of the split is then kept on every rank."""


def bin_edges(bins: Sequence[float], scale: Sequence[float], *, source: str) -> tuple[float, ...]:
    """Edges on the corpus's scale as ``Extras`` takes them, on 0..1.

    Raises:
        ConfigError: they do not rise, or lie outside the scale; ``source`` names where they stand.
    """
    low, high = scale
    if list(bins) != sorted(set(bins)) or any(not low < edge < high for edge in bins):
        raise ConfigError(
            f"{source} = {list(bins)}: must rise, and lie between {low:g} and {high:g}, the ends of the scale. "
            "Change them."
        )
    return tuple((edge - low) / (high - low) for edge in bins)


def evaluate(
    forward: Callable[[Batch], Any],
    loader: Loader,
    targets: Sequence[str],
    target_weights: Sequence[float],
    device: torch.device,
    *,
    extras: Extras = Extras(),
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
        extras: what is scored beside.
        advance: called after each step, for a progress bar.
        check: called before each step; what it raises on one rank is raised on all.
    """
    sums, beside = SplitSums(targets), _Beside(targets, extras)
    damaged: list[str] = []
    with torch.no_grad(), exact_float32():
        for step in lockstep(loader.epoch(0), loader.steps_per_epoch, check=check):
            outputs = [forward(batch.to(device)) for batch in step.micro_batches]
            for batch, (prediction, categories) in zip(step.micro_batches, _on_host(outputs), strict=True):
                sums.add(prediction, batch.labels, batch.weight)
                beside.add(prediction, categories, batch)
                damaged += batch.damaged
            advance()
    whole = SplitSums.from_tensor(targets, sum_over_ranks(sums.to_tensor()))
    ccc = whole.ccc()
    num_labels = whole.num_labels()
    metrics = beside.metrics()
    scored = [(alpha, ccc[t]) for alpha, t in zip(target_weights, targets, strict=True) if num_labels[t] >= 2]
    return Scores(
        ccc=ccc,
        pearson=whole.pearson(),
        mae=whole.mae(),
        num_labels=num_labels,
        sums=whole.by_target(),
        damaged=tuple(words for theirs in gather_objects(damaged) for words in theirs),
        loss=sum(alpha * (1 - value) for alpha, value in scored)
        + extras.category_weight * metrics.get("categories", {}).get("cross_entropy", 0.0),
        **metrics,
    )


def _on_host(outputs: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Predictions and scores of categories, by one copy, for which the host waits once."""
    scores = [getattr(output, "categories", None) for output in outputs]
    given = [output.prediction.detach() for output in outputs] + [one.detach() for one in scores if one is not None]
    flat = iter(fetched([one.flatten() for one in given]))
    arrived = [next(flat).reshape(one.shape) for one in given]
    predictions, rest = arrived[: len(outputs)], iter(arrived[len(outputs) :])
    for prediction, score in zip(predictions, scores, strict=True):
        yield prediction, None if score is None else next(rest)


class _Beside:
    """Sums and rows of what is scored beside the targets' CCC, on this rank."""

    def __init__(self, targets: Sequence[str], extras: Extras) -> None:
        self._targets, self._extras = tuple(targets), extras
        self._confusion = ConfusionSums(extras.categories)
        self._cross_entropy = torch.zeros(2, dtype=torch.float64)
        self._divergence = torch.zeros(2, dtype=torch.float64)
        classes = [str(number) for number in range(len(extras.bins) + 1)] if extras.bins else []
        self._binned = {column: ConfusionSums(classes) for column, target in enumerate(targets) if is_rating(target)}
        self._rows: list[Tensor] = []

    def add(self, prediction: Tensor, categories: Tensor | None, batch: Batch) -> None:
        """One batch that was predicted; all of it on the host."""
        if self._extras.categories and batch.categories is not None:
            assert categories is not None, "a model that is scored by its categories gives them"
            known = categorised(batch.categories, batch.weight)
            self._confusion.add(categories[known].argmax(dim=1), batch.categories[known])
            self._cross_entropy += cross_entropy_sums(categories, batch.categories, batch.weight)
            if batch.votes is not None:
                self._divergence += divergence_sums(categories, batch.votes, batch.weight)
        if not (self._extras.bins or self._extras.spearman):
            return
        counts = batch.weight > 0
        prediction, label = prediction[counts], batch.labels[counts]
        for column, confusion in self._binned.items() if self._extras.bins else ():
            rated = ~torch.isnan(label[:, column])
            predicted = binned(prediction[rated, column].float(), self._extras.bins)
            confusion.add(predicted, binned(label[rated, column], self._extras.bins))
        if self._extras.spearman:
            self._rows.append(torch.stack([prediction.double(), label.double()]))

    def metrics(self) -> dict[str, Any]:
        """Over all ranks, as fields of ``Scores``; every rank must call it."""
        found: dict[str, Any] = {}
        if self._extras.categories:
            cells = sum_over_ranks(self._confusion.to_tensor())
            whole = ConfusionSums.from_tensor(self._extras.categories, cells)
            found["categories"] = {
                "weighted_accuracy": whole.weighted_accuracy(),
                "unweighted_accuracy": whole.unweighted_recall(),
                "macro_f1": whole.macro_f1(),
                "cross_entropy": float(mean_cross_entropy(sum_over_ranks(self._cross_entropy))),
            }
            if self._extras.votes:
                found["categories"]["kl_to_votes"] = float(mean_cross_entropy(sum_over_ranks(self._divergence)))
            found["confusion"] = whole.by_class()
        if self._extras.bins:
            found["unweighted_recall"] = {
                self._targets[column]: ConfusionSums.from_tensor(
                    own.classes, sum_over_ranks(own.to_tensor())
                ).unweighted_recall()
                for column, own in self._binned.items()
            }
        if self._extras.spearman:
            found["spearman"] = self._rank_correlations()
        return found

    def _rank_correlations(self) -> dict[str, float]:
        own = torch.cat(self._rows, dim=1) if self._rows else torch.zeros(2, 0, len(self._targets)).double()
        prediction, label = torch.cat([torch.from_numpy(rows) for rows in gather_objects(own.numpy())], dim=1)
        correlations = {}
        for column, target in enumerate(self._targets):
            rated = ~torch.isnan(label[:, column])
            correlations[target] = spearman(prediction[rated, column], label[rated, column]) if rated.any() else nan
        return correlations
