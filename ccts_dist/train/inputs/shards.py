"""The shard set of a run."""

from pathlib import Path
from typing import Any

from ccts_dist.config import RunConfig
from ccts_dist.loader.joined_shards import ExtraSet, JoinedShards
from ccts_dist.records import varied_target
from ccts_dist.scoring.predict_split import bin_edges
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.train.steps.trainable_loss import check_labels


def open_shards(run: RunConfig) -> ShardSet:
    """The shard set, once its splits and labels can carry the run.

    Raises:
        ConfigError: a split that it does not have, labels that no loss can learn, or bins beyond its scale.
        ShardError: it cannot be read.
    """
    shard_set = open_shard_set(run.data.shards, **shard_cache(run))
    shard_set.shards_of(run.data.test_splits)
    evaluation_bins(run, shard_set)
    check_labels(run, shard_set)
    return shard_set


def with_extra_shards(run: RunConfig, shard_set: ShardSet) -> ShardSet:
    """The shard sets of a training: that of ``data.shards``, and those of ``data.extra_shards``.

    Raises:
        ConfigError: a set without the splits, or without a label that the model learns.
        ShardError: it cannot be read.
    """
    if not run.data.extra_shards:
        return shard_set
    joined = JoinedShards(
        shard_set,
        (
            ExtraSet(shard_set=open_shard_set(one.shards, **shard_cache(run)), splits=one.splits, share=one.share)
            for one in run.data.extra_shards
        ),
    )
    names = [varied_target(target) or target for target in run.model.targets]
    joined.check_names(names, (*run.model.categories, *run.model.category_map))
    return joined


def shard_cache(run: RunConfig) -> dict[str, Any]:
    """Folder and size in bytes of the cache in which this node keeps shards of a store, as keyword arguments."""
    data = run.data
    return {
        "cache": Path(data.shard_cache) if data.shard_cache else None,
        "cache_bytes": int(data.shard_cache_gb * 1e9),
    }


def evaluation_bins(run: RunConfig, shard_set: ShardSet) -> tuple[float, ...]:
    """Edges of the bins that recalls are computed for, on 0 to 1; empty without ``evaluation.bins``."""
    return bin_edges(run.evaluation.bins, shard_set.manifest.scale, source="evaluation.bins")
