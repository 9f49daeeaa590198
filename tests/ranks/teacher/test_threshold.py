"""The threshold that leaves out a given share, of residuals that lie on several ranks."""

from pathlib import Path

import numpy as np
import pytest

from ccts_dist.distributed import Ranks, rank_facts
from ccts_dist.losses.gate import gated_on
from ccts_dist.records import Condition
from ccts_dist.shards import ShardSet, TeacherCache, open_shard_set, open_teacher_cache
from ccts_dist.teacher.robust import robust_condition
from ccts_dist.teacher.threshold import kth_smallest, rejected_fraction, threshold_rejecting
from tests.helpers.examples.shard_examples import example_cache, example_shard_set
from tests.helpers.ranks.processes import run_on_ranks

SIZES = (0, 5, 300)
"""Numbers of each rank: one has none."""


def numbers_of(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).exponential(size=SIZES[rank]).astype(np.float32)


def found_of(ranks: Ranks, shard_set: ShardSet, cache: TeacherCache) -> tuple[float, float, Condition]:
    """What is found before training: a threshold, the share of a threshold, and the condition without outliers."""
    of = (cache, shard_set, ("Train",))
    robust = robust_condition(*of, ranks=ranks)
    share = rejected_fraction(0.5, *of, ranks=ranks, condition=gated_on(robust, ("valence",)))
    return threshold_rejecting(0.3, *of, ranks=ranks), share, robust


def every_kth(folder: Path) -> tuple[list[float], tuple[float, float, Condition]]:
    """On one rank: some of the smallest numbers of all ranks, and what is found of a cache in ``folder``."""
    ranks = rank_facts()
    shard_set = open_shard_set(folder / "shards")
    cache = open_teacher_cache(folder / "cache", shard_set)
    return [kth_smallest(numbers_of(ranks.rank), k) for k in (1, 7, 150, 305)], found_of(ranks, shard_set, cache)


def test_ranks_agree_on_the_threshold_that_one_alone_finds(tmp_path):
    shard_set = example_shard_set(tmp_path, count=20)
    cache = example_cache(tmp_path / "cache", shard_set)
    threshold, share, robust = found_of(Ranks(), shard_set, cache)
    assert 0.05 < share < 0.95
    ordered = np.sort(np.concatenate([numbers_of(rank) for rank in range(3)]))
    expected = [float(ordered[k - 1]) for k in (1, 7, 150, 305)]
    on_ranks = run_on_ranks(every_kth, 3, tmp_path)
    assert on_ranks[0] == on_ranks[1] == on_ranks[2]
    numbers, found = on_ranks[0]
    assert numbers == expected
    assert found[:2] == (threshold, share)
    for name in ("w", "b", "residual_std"):  # sums of floats in another order
        assert getattr(found[2], name) == pytest.approx(getattr(robust, name), rel=1e-9)
