"""The threshold that leaves out a given share, of residuals that lie on several ranks."""

from pathlib import Path

import numpy as np

from ccts_dist.distributed import Ranks, rank_facts
from ccts_dist.shards import open_shard_set, open_teacher_cache
from ccts_dist.teacher.threshold import kth_smallest, threshold_leaving_out
from tests.ranks.processes import run_on_ranks
from tests.shard_examples import example_cache, example_shard_set

SIZES = (0, 5, 300)
"""Numbers of each rank: one has none."""


def numbers_of(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).exponential(size=SIZES[rank]).astype(np.float32)


def every_kth(folder: Path) -> tuple[list[float], float]:
    """On one rank: some of the smallest numbers of all ranks, and a threshold of a cache in ``folder``."""
    ranks = rank_facts()
    shard_set = open_shard_set(folder / "shards")
    cache = open_teacher_cache(folder / "cache", shard_set)
    threshold = threshold_leaving_out(0.3, cache, shard_set, ("Train",), ranks=ranks)
    return [kth_smallest(numbers_of(ranks.rank), k) for k in (1, 7, 150, 305)], threshold


def test_ranks_agree_on_the_threshold_that_one_alone_finds(tmp_path):
    shard_set = example_shard_set(tmp_path, count=20)
    cache = example_cache(tmp_path / "cache", shard_set)
    alone = threshold_leaving_out(0.3, cache, shard_set, ("Train",), ranks=Ranks())
    ordered = np.sort(np.concatenate([numbers_of(rank) for rank in range(3)]))
    expected = [float(ordered[k - 1]) for k in (1, 7, 150, 305)]
    assert run_on_ranks(every_kth, 3, tmp_path) == [(expected, alone)] * 3
