"""How a global batch is cut into parts."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError
from ccts_dist.loader.micro_batches import (
    SecondsLimit,
    check_length,
    choose_num_micro_batches,
    split_global_batch,
    sum_up,
)
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.shards.format.index import ShardRows

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


def rows_of(*lengths: int) -> list[SampleRef]:
    return [SampleRef("Train-000000.tar", number, length, NO_TABLE) for number, length in enumerate(lengths)]


def lengths_of(steps: list) -> list[list[list[int]]]:
    return [[[row.num_samples for row in part.rows] for part in ranks] for ranks in steps]


def test_parts_of_a_hand_worked_batch():
    # Two parts of runs of 9 6 5 5 4 3: the best is [9 6] = 18 and [5 5 4 3] = 20.
    assert lengths_of(split_global_batch(rows_of(3, 9, 5, 4, 6, 5), 2, 1, 8)) == [[[5, 5, 4, 3], [9, 6]]]


def test_parts_of_similar_cost_run_in_one_pass():
    # Runs of at most two: 40 20 | 16 15 | 6 6 | 5 1; the costs 80, 32, 12, 10 are paired.
    steps = split_global_batch(rows_of(1, 5, 6, 6, 15, 16, 20, 40), 2, 2, 2)
    assert [[part.padded_samples for part in ranks] for ranks in steps] == [[80, 32], [12, 10]]


def test_empty_part_gets_a_copy_of_the_shortest_row_that_does_not_count():
    ((first, second, third),) = split_global_batch(rows_of(7, 5), 3, 1, 4)
    assert (first.rows[0].num_samples, second.rows[0].num_samples) == (7, 5)
    assert (third.rows, third.counts, third.real_samples) == (second.rows, False, 0)


def test_batch_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"5 utterances does not fit 2 micro-batches on 1 ranks.*micro_batch_size=2"):
        split_global_batch(rows_of(1, 2, 3, 4, 5), 1, 2, 2)


@given(
    lengths=st.lists(st.integers(1, 200_000), min_size=1, max_size=60),
    num_ranks=st.integers(1, 16),
    micro=st.integers(1, 20),
    spare=st.integers(0, 2),
)
def test_parts_are_the_batch_and_none_is_above_the_limit(lengths, num_ranks, micro, spare):
    rows = rows_of(*lengths)
    num_micro_batches = -(-len(rows) // (num_ranks * micro)) + spare
    parts = [part for ranks in split_global_batch(rows, num_ranks, num_micro_batches, micro) for part in ranks]
    assert len(parts) == num_micro_batches * num_ranks
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
    assert max(part.padded_samples for part in split_global_batch(rows_of(*lengths), num_parts, 1, micro)[0]) == best


def limit(max_samples: int = 10**9, overhead_samples: int = 1, micro: int = 10**6) -> SecondsLimit:
    return SecondsLimit(micro=micro, max_samples=max_samples, overhead_samples=overhead_samples)


def test_as_many_micro_batches_as_make_a_hand_worked_step_shortest():
    # Of 9 6 5 5 4 3 on one rank: in one pass 54; in two [9 6] [5 5 4 3] 18 + 20 = 38; in three [9] [6 5] [5 4 3] 9 + 12
    # + 15 = 36; in four [9] [6] [5 5] [4 3] 9 + 6 + 10 + 8 = 33; in five [9] [6] [5] [5] [4 3] 33; in six 32.
    rows = rows_of(3, 9, 5, 4, 6, 5)
    by_overhead = {20: 1, 10: 2, 3: 2, 2: 4, 1: 4}
    assert {
        cost: choose_num_micro_batches([rows], 1, limit(overhead_samples=cost)) for cost in by_overhead
    } == by_overhead


def test_a_pass_takes_as_long_as_its_largest_part():
    # On two ranks 40 20 16 15 6 6 5 1: one pass of [40 20] 80 | [16 15 6 6 5 1] 96 takes 96; two of [40] [20 16] and
    # [15 6] [6 5 1] take 40 + 30 = 70; three 40 + 30 + 5 = 75.
    rows = rows_of(1, 5, 6, 6, 15, 16, 20, 40)
    assert choose_num_micro_batches([rows], 2, limit(overhead_samples=27)) == 1
    assert choose_num_micro_batches([rows], 2, limit(overhead_samples=25)) == 2
    # With a row to a part, [40] [20] | [16] [15] | [6] [6] | [5] [1], 67.
    assert choose_num_micro_batches([rows], 2, limit()) == 4


def test_no_micro_batch_is_above_the_seconds_or_the_utterances():
    rows = rows_of(9, 8, 7, 6, 5, 4)
    assert choose_num_micro_batches([rows], 1, limit(18, overhead_samples=100)) == 3  # [9 8] [7 6] [5 4]
    assert choose_num_micro_batches([rows], 3, limit(18, overhead_samples=100)) == 1
    assert choose_num_micro_batches([rows], 1, limit(micro=4, overhead_samples=100)) == 2
    assert choose_num_micro_batches([rows], 1, limit(9, overhead_samples=100)) == 6


def test_nodes_that_read_their_own_utterances_agree_on_the_micro_batches():
    long, short = rows_of(9, 9, 9, 9), rows_of(1, 1, 1, 1)
    alone = [choose_num_micro_batches([rows], 1, limit(18, overhead_samples=100)) for rows in (long, short)]
    assert alone == [2, 1]
    assert choose_num_micro_batches([long, short], 1, limit(18, overhead_samples=100)) == 2
    assert choose_num_micro_batches([short, long], 1, limit(18, overhead_samples=100)) == 2


def test_utterance_that_is_longer_than_a_micro_batch_is_refused_with_what_helps():
    with pytest.raises(
        ConfigError, match=r"micro_batch_seconds = 2: .* takes 2\.51 s\. Raise it to at least 2\.51, or"
    ):
        check_length(40_100, 32_000)
    check_length(32_000, 32_000)
    with pytest.raises(ConfigError, match=r"longest training utterance"):
        choose_num_micro_batches([rows_of(40_100, 5)], 1, limit(32_000))


def test_changes_of_speed_count_before_the_limit():
    rows, fast = rows_of(9, 8, 7, 6, 5, 4), limit(24, overhead_samples=100)
    assert choose_num_micro_batches([rows], 1, fast) == 3  # [9 8] [7 6 5] [4]
    slow = replace(fast, padded=lambda samples: 2 * samples)
    assert choose_num_micro_batches([rows], 1, slow) == 5  # [18] [16] [14] [12 10] [8]
    parts = [ranks[0] for ranks in split_global_batch(rows_of(4, 3, 3, 2), 1, 2, 9, lambda samples: 10 * samples)]
    assert [part.padded_samples for part in parts] == [8, 6]


@given(
    lengths=st.lists(st.integers(1, 200_000), min_size=1, max_size=60),
    num_ranks=st.integers(1, 8),
    micro=st.integers(1, 20),
    seconds=st.integers(200_000, 2_000_000),
    overhead=st.integers(1, 500_000),
    order=st.randoms(use_true_random=False),
)
def test_parts_cut_by_seconds_are_the_batch_and_keep_the_limits(lengths, num_ranks, micro, seconds, overhead, order):
    rows, limits = rows_of(*lengths), limit(seconds, overhead, micro)
    num_micro_batches = choose_num_micro_batches([rows], num_ranks, limits)
    steps = split_global_batch(rows, num_ranks, num_micro_batches, micro)
    assert [len(ranks) for ranks in steps] == [num_ranks] * num_micro_batches
    parts = [part for ranks in steps for part in ranks]
    assert sorted((r for part in parts if part.counts for r in part.rows), key=lambda r: r.row) == rows
    assert all(len(part.rows) <= micro and part.padded_samples <= seconds for part in parts)
    shuffled = rows[:]
    order.shuffle(shuffled)
    assert choose_num_micro_batches([shuffled], num_ranks, limits) == num_micro_batches
    again = split_global_batch(sorted(shuffled, key=lambda row: row.row), num_ranks, num_micro_batches, micro)
    assert lengths_of(again) == lengths_of(steps)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=24),
    num_ranks=st.integers(1, 3),
    overhead=st.integers(1, 60),
)
def test_no_neighboring_number_of_micro_batches_makes_a_shorter_step(lengths, num_ranks, overhead):
    rows = rows_of(*lengths)
    chosen = choose_num_micro_batches([rows], num_ranks, limit(overhead_samples=overhead))

    def cost(num_micro_batches: int) -> int:
        parts = split_global_batch(rows, num_ranks, num_micro_batches, 10**6)
        return (
            sum(max(part.padded_samples for part in ranks if part.counts) for ranks in parts)
            + num_micro_batches * overhead
        )

    assert all(cost(chosen) <= cost(other) for other in (chosen - 1, chosen + 1) if 0 < other * num_ranks <= len(rows))


def test_sums_of_some_steps():
    steps = [split_global_batch(rows_of(9, 6, 5, 5, 4, 3), 2, 1, 8), split_global_batch(rows_of(10, 4, 4), 1, 2, 8)]
    found = sum_up(steps)
    assert (found.fewest_micro_batches, found.most_micro_batches, found.longest_samples) == (1, 2, 10)
    assert found.largest.padded_samples == 20
    assert [part.padded_samples for part in found.largest_step] == [20]
    assert found.padding == pytest.approx(1 - (32 + 18) / (38 + 18))
