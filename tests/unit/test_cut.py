"""How a global batch is cut into parts."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError
from ccts_dist.loader.cut import cut
from ccts_dist.loader.plan import Row
from ccts_dist.shards.index import ShardRows

NO_TABLE = ShardRows(
    shard="Train-000000.tar",
    keys=(),
    num_samples=np.zeros(0, np.int64),
    labels={},
    speakers=(),
    genders=(),
    categories=(),
    members={},
)


def rows_of(*lengths: int) -> list[Row]:
    return [Row("Train-000000.tar", number, length, NO_TABLE) for number, length in enumerate(lengths)]


def lengths_of(passes: list) -> list[list[list[int]]]:
    return [[[row.num_samples for row in part.rows] for part in ranks] for ranks in passes]


def test_parts_of_a_hand_worked_batch():
    # Two parts of runs of 9 6 5 5 4 3: the best is [9 6] = 18 and [5 5 4 3] = 20.
    assert lengths_of(cut(rows_of(3, 9, 5, 4, 6, 5), 2, 1, 8)) == [[[5, 5, 4, 3], [9, 6]]]


def test_parts_of_similar_cost_run_in_one_pass():
    # Runs of at most two: 40 20 | 16 15 | 6 6 | 5 1; the costs 80, 32, 12, 10 are paired.
    passes = cut(rows_of(1, 5, 6, 6, 15, 16, 20, 40), 2, 2, 2)
    assert [[part.padded_samples for part in ranks] for ranks in passes] == [[80, 32], [12, 10]]


def test_empty_part_gets_a_copy_of_the_shortest_row_that_does_not_count():
    ((first, second, third),) = cut(rows_of(7, 5), 3, 1, 4)
    assert (first.rows[0].num_samples, second.rows[0].num_samples) == (7, 5)
    assert (third.rows, third.counts, third.real_samples) == (second.rows, False, 0)


def test_batch_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"5 utterances does not fit 2 passes on 1 ranks.*micro_utterances=2"):
        cut(rows_of(1, 2, 3, 4, 5), 1, 2, 2)


@given(
    lengths=st.lists(st.integers(1, 200_000), min_size=1, max_size=60),
    num_ranks=st.integers(1, 16),
    micro=st.integers(1, 20),
    spare=st.integers(0, 2),
)
def test_parts_are_the_batch_and_none_is_above_the_limit(lengths, num_ranks, micro, spare):
    rows = rows_of(*lengths)
    passes = -(-len(rows) // (num_ranks * micro)) + spare
    parts = [part for ranks in cut(rows, num_ranks, passes, micro) for part in ranks]
    assert len(parts) == passes * num_ranks
    assert all(len(part.rows) <= micro for part in parts)
    assert sorted((r for part in parts if part.counts for r in part.rows), key=lambda r: r.row) == rows
    assert sum(not part.counts for part in parts) == max(0, len(parts) - len(rows))
    assert all(part.rows[0].num_samples == max(row.num_samples for row in part.rows) for part in parts)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=9), num_parts=st.integers(1, 4), micro=st.integers(1, 9)
)
def test_no_other_runs_have_a_smaller_largest_part(lengths, num_parts, micro):
    micro = max(micro, -(-len(lengths) // num_parts))
    falling = sorted(lengths, reverse=True)

    def largest(inner: tuple[int, ...]) -> int:
        edges = [0, *inner, len(falling)]
        runs = [falling[low:high] for low, high in pairwise(edges)]
        return max(len(run) * run[0] for run in runs) if all(len(run) <= micro for run in runs) else 10**9

    counts = range(min(num_parts, len(falling)))
    best = min(largest(inner) for count in counts for inner in combinations(range(1, len(falling)), count))
    assert max(part.padded_samples for part in cut(rows_of(*lengths), num_parts, 1, micro)[0]) == best
