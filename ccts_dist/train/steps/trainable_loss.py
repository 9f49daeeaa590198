"""Losses that no weight can lower: a CCC over one utterance, or of labels that never vary; categories of one kind."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from ccts_dist.config import RunConfig
from ccts_dist.errors import ConfigError
from ccts_dist.loader.collate import vote_labels, vote_shares
from ccts_dist.loader.decode import read_label_variance
from ccts_dist.loader.loader import Loader
from ccts_dist.records import mapped_category, varied_target
from ccts_dist.shards.format.schema import ShardEntry
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.train.resolved import target_weights

SAME_LABEL = 1e-9
"""Labels on 0..1 that differ by less are equal: text and its scale have rounded them."""


def check_labels(run: RunConfig, shard_set: ShardSet) -> None:
    """Refuse splits that the run trains or validates on and that give no target a CCC, or no two categories.

    Raises:
        ConfigError: no target has two labels, or every one that has them has the same label for all utterances; of a
            model without targets, fewer than two of its categories occur; of one that learns from votes, fewer than
            two got any.
    """
    if run.loss.category_target == "votes":
        _check_votes(run, shard_set)
    if not run.model.targets:
        _check_categories(run, shard_set)
        return
    weights = zip(run.model.targets, target_weights(run), strict=True)
    weighted = [target for target, weight in weights if weight > 0] or list(run.model.targets)
    for splits in (run.data.train_splits, run.data.valid_splits):
        shards = shard_set.shards_of(splits)
        labelled = [target for target in weighted if _has_two_labels(shard_set, shards, target)]
        if not labelled:
            raise ConfigError(
                f"{shard_set.root}: {list(splits)} has no two utterances with a label of {list(run.model.targets)}, "
                "and a loss needs two. Name labelled splits, or other model.targets."
            )
        if all(constant_label(shard_set, shards, target) is not None for target in labelled):
            raise ConfigError(
                f"{shard_set.root}: every utterance of {list(splits)} has the same label of {labelled}: the CCC of "
                "labels that never vary is 0 whatever is predicted, and no weight would move. Mend the labels, or "
                "name other splits or model.targets."
            )


def _check_categories(run: RunConfig, shard_set: ShardSet) -> None:
    for splits in (run.data.train_splits, run.data.valid_splits):
        found: set[str] = set()
        for shard in shard_set.shards_of(splits):
            names = shard_set.rows(shard.name).categories
            found |= {name for one in names if (name := mapped_category(one, run.model.category_map)) is not None}
        known = [category for category in run.model.categories if category in found]
        if len(known) < 2:
            raise ConfigError(
                f"{shard_set.root}: {list(splits)} has utterances of {known or 'none'} of model.categories = "
                f"{list(run.model.categories)}, and telling them apart needs two. Name other splits or categories."
            )


def _check_votes(run: RunConfig, shard_set: ShardSet) -> None:
    got = np.zeros(len(run.model.categories), dtype=bool)
    for shard in shard_set.shards_of(run.data.train_splits):
        labels = shard_set.rows(shard.name).labels
        names = vote_labels(run.model.categories, labels)
        if all(name in labels for name in names):
            got |= (vote_shares(np.stack([labels[name] for name in names], axis=1)) > 0).any(axis=0)
    if got.sum() < 2:
        raise ConfigError(
            f'{shard_set.root}: loss.category_target = "votes", and {list(run.data.train_splits)} has no votes for two '
            f"of {list(run.model.categories)}. Build the set with its votes, or leave the key out."
        )


def label_warnings(run: RunConfig, shard_set: ShardSet) -> list[str]:
    """A line for each target whose labels never vary in the training or in the validation splits."""
    lines = []
    for splits in (run.data.train_splits, run.data.valid_splits):
        shards = shard_set.shards_of(splits)
        for target in run.model.targets:
            label = constant_label(shard_set, shards, target)
            if label is not None:
                lines.append(
                    f"warning: every label of {target!r} in {', '.join(splits)} is {label:g} (on 0..1): its CCC is 0 "
                    "whatever is predicted"
                )
    return lines


def check_batches(run: RunConfig, loader: Loader) -> None:
    """Refuse batches over which there is no CCC.

    Raises:
        ConfigError: every CCC of the loss would be of one utterance.
    """
    if not run.model.targets:
        return  # a cross-entropy exists of one utterance
    if loader.plan.largest_batch < 2:
        raise ConfigError(
            f"batch.global_batch_size = {run.batch.global_batch_size}: the CCC of one utterance does not exist, so the "
            "loss would be constant and no weight would move. Set batch.global_batch_size to 2 or more; 32 is usual."
        )
    if run.loss.scope == "micro-batch" and loader.cuts().most_utterances < 2:
        batch = run.batch
        raise ConfigError(
            f'loss.scope = "micro-batch" with batch.micro_batch_size = {batch.micro_batch_size} and '
            f"batch.global_batch_size = {batch.global_batch_size}: every micro-batch is one utterance, whose CCC does "
            "not exist, so the loss would be constant and no weight would move. Raise them (or "
            'batch.micro_batch_seconds), take fewer ranks, or set loss.scope = "global".'
        )


def constant_label(shard_set: ShardSet, shards: Sequence[ShardEntry], target: str) -> float | None:
    """The one label that all labelled utterances of these shards have; None where there are others, or fewer than two.

    Reads on only as long as all are equal. The variance of raters stands in the tars, and is not looked at.
    """
    if varied_target(target) is not None:
        return None
    low, high, count = np.inf, -np.inf, 0
    for shard in shards:
        labels = shard_set.rows(shard.name).labels.get(target)
        known = np.zeros(0) if labels is None else labels[np.isfinite(labels)]
        if len(known):
            low, high, count = min(low, known.min()), max(high, known.max()), count + len(known)
        if high - low > SAME_LABEL:
            return None
    return float(low) if count >= 2 else None


def _has_two_labels(shard_set: ShardSet, shards: Sequence[ShardEntry], target: str) -> bool:
    """True if two utterances have a label of the target."""
    found = 0
    varied = varied_target(target)
    for shard in shards:
        rows = shard_set.rows(shard.name)
        if varied is not None:
            known = (varied in read_label_variance(shard_set, rows, row) for row in range(len(rows)))
            found += len(list(islice(filter(None, known), 2)))
        else:
            labels = rows.labels.get(target)
            found += 0 if labels is None else int(np.isfinite(labels).sum())
        if found >= 2:
            return True
    return False
