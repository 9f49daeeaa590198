"""The plan: which utterances form which global batch."""

import hashlib
import json
import pickle
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError
from ccts_dist.loader.micro_batches import split_global_batch
from ccts_dist.loader.partitions import shuffled
from ccts_dist.loader.sampler import BatchSampler, SampleRef
from ccts_dist.shards.format.index import IndexPlace, ShardRows
from ccts_dist.shards.format.schema import ShardEntry

NOWHERE = IndexPlace(offset=0, size=0, sha256="")


class Counts:
    """Index rows made from counts alone: a shard set as large as a test likes, without a file."""

    digest = "d" * 64

    def __init__(self, counts: Sequence[int], seed: int = 0) -> None:
        self._counts = {f"Train-{number:06d}.tar": count for number, count in enumerate(counts)}
        self._seed = seed
        self.read: Counter[str] = Counter()
        self.made: dict[str, ShardRows] = {}

    def shards_of(self, splits: Sequence[str]) -> tuple[ShardEntry, ...]:
        del splits
        return tuple(
            ShardEntry(
                name=name, split="Train", num_utterances=count, num_samples=0, size_bytes=0, sha256="", index=NOWHERE
            )
            for name, count in self._counts.items()
        )

    def rows(self, shard: str) -> ShardRows:
        self.read[shard] += 1
        if shard in self.made:
            return self.made[shard]
        count = self._counts[shard]
        draws = np.random.default_rng((self._seed, int(shard[6:12])))
        # Like MSP-Podcast: 2 to 11 s, most of them short.
        seconds = np.clip(draws.lognormal(np.log(4.5), 0.5, count), 2.0, 11.0)
        return ShardRows(
            shard=shard,
            keys=tuple(f"{shard[:-4]}_{row}" for row in range(count)),
            num_samples=(seconds * 16_000).astype(np.int64),
            labels={},
            speakers=(None,) * count,
            genders=(None,) * count,
            categories=(None,) * count,
            members={},
        )


def make_plan(source: Counts, **choices) -> BatchSampler:
    choices = {"global_batch_size": 8, "seed": 1, "shuffle_buffer_size": 64, "bucket_batches": 2} | choices
    return BatchSampler(source, ("Train",), **choices)


def epoch_of(plan: BatchSampler, epoch: int, start: int = 0) -> list[tuple[SampleRef, ...]]:
    return [plan.global_batch(epoch, step) for step in range(start, plan.steps_per_epoch)]


layouts = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
choices = st.fixed_dictionaries(
    {
        "global_batch_size": st.integers(1, 20),
        "seed": st.integers(0, 2**40),
        "shuffle_buffer_size": st.integers(1, 200),
        "bucket_batches": st.integers(1, 9),
        "shuffle": st.booleans(),
        "partitions": st.integers(1, 4),
    }
)


def possible(counts: Sequence[int], choices: dict) -> dict:
    """The choices with no more partitions than the smallest batch has utterances."""
    smallest = sum(counts) // -(-sum(counts) // choices["global_batch_size"])
    return choices | {"partitions": min(choices["partitions"], smallest)}


@given(counts=layouts, choices=choices, epoch=st.integers(0, 5))
def test_each_utterance_comes_exactly_once_per_epoch_in_batches_of_equal_size(counts, choices, epoch):
    batches = epoch_of(make_plan(Counts(counts), **possible(counts, choices)), epoch)
    assert sorted((row.shard, row.row) for batch in batches for row in batch) == [
        (f"Train-{number:06d}.tar", row) for number, count in enumerate(counts) for row in range(count)
    ]
    sizes = {len(batch) for batch in batches}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= choices["global_batch_size"]
    assert len(batches) == -(-sum(counts) // choices["global_batch_size"])


@given(counts=layouts, choices=choices, data=st.data())
def test_first_k_steps_plus_the_rest_is_the_epoch_after_resuming_twice(counts, choices, data):
    source, choices = Counts(counts), possible(counts, choices)
    whole = epoch_of(make_plan(source, **choices), 3)
    first = data.draw(st.integers(0, len(whole)))
    second = data.draw(st.integers(first, len(whole)))
    resumed = [make_plan(source, **choices), pickle.loads(pickle.dumps(make_plan(source, **choices)))]
    middle, last = epoch_of(resumed[0], 3, first)[: second - first], epoch_of(resumed[1], 3, second)
    assert whole[:first] + middle + last == whole


@given(counts=layouts, choices=choices, micro=st.integers(1, 8))
def test_every_number_of_ranks_cuts_the_same_batches_into_equally_many_micro_batches(counts, choices, micro):
    plan = make_plan(Counts(counts), **possible(counts, choices))
    batch = plan.global_batch(0, plan.steps_per_epoch - 1)
    for num_ranks in range(1, 17):
        num_micro_batches = -(-plan.largest_batch // (micro * num_ranks))
        parts = [part for ranks in split_global_batch(batch, num_ranks, num_micro_batches, micro) for part in ranks]
        assert len(parts) == num_micro_batches * num_ranks
        assert sorted(row.key for part in parts if part.counts for row in part.rows) == sorted(r.key for r in batch)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    global_batch_size=st.integers(1, 40),
    nodes=st.integers(1, 5),
    per_node=st.integers(1, 3),
)
def test_streams_give_equal_shares_and_a_node_never_more_than_its_part(counts, global_batch_size, nodes, per_node):
    num_utterances, partitions = sum(counts), nodes * per_node
    plan_steps = -(-num_utterances // global_batch_size)
    assume(partitions <= num_utterances // plan_steps)
    plan = make_plan(Counts(counts), global_batch_size=global_batch_size, partitions=partitions)
    of_partition: dict[tuple[str, int], int] = {}
    for epoch in (0, 3):
        for step in range(plan.steps_per_epoch):
            batch = plan.global_batch(epoch, step)
            shares = [plan.global_batch(epoch, step, range(s, s + 1)) for s in range(partitions)]
            assert sorted((r.shard, r.row) for share in shares for r in share) == sorted(
                (r.shard, r.row) for r in batch
            )
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            for node in range(nodes):
                own = plan.global_batch(epoch, step, range(node * per_node, (node + 1) * per_node))
                assert len(own) <= -(-len(batch) // nodes)
            for partition, share in enumerate(shares):
                for row in share:
                    assert (
                        of_partition.setdefault((row.shard, row.row), partition) == partition
                    )  # in every epoch the same


def test_a_node_reads_the_shards_of_its_own_streams_and_at_most_one_more():
    source = Counts([16] * 64)
    plan = make_plan(source, partitions=4, shuffle_buffer_size=64)
    read = set()
    for epoch in range(3):
        for step in range(plan.steps_per_epoch):
            plan.global_batch(epoch, step, range(1, 2))
    read = set(source.read)
    assert 16 <= len(read) <= 17


def test_shards_of_a_window_are_those_that_its_batches_come_from():
    source = Counts([7, 30, 12, 5, 22, 40])
    plan = make_plan(source, shuffle_buffer_size=32, partitions=2)
    for number in range(plan.windows_per_epoch):
        named = plan.shards_of_window(2, number)
        assert not source.read
        steps = range(number * plan.window_steps, min((number + 1) * plan.window_steps, plan.steps_per_epoch))
        assert set(named) == {row.shard for step in steps for row in plan.global_batch(2, step)}
        source.read.clear()


def test_more_streams_than_a_batch_can_share_are_refused():
    with pytest.raises(
        ConfigError, match=r"data.num_partitions=9: a global batch of 8 utterances has no share for each"
    ):
        make_plan(Counts([80]), partitions=9)


def test_order_of_a_small_plan_stays_what_it_was():
    # Frozen: a change here is a change of ITERATION ORDER and raises ORDER_VERSION.
    source = Counts([3, 4])
    for shard, seconds in (("Train-000000.tar", [3, 2, 4]), ("Train-000001.tar", [5, 9, 8, 7])):
        rows = source.rows(shard)
        rows.num_samples[:] = [16_000 * count for count in seconds]
        source.made[shard] = rows
    plan = make_plan(source, global_batch_size=3, seed=7)
    assert [[f"{r.shard[11]}{r.row}" for r in batch] for batch in epoch_of(plan, 0)] == [
        ["02", "10"],
        ["12", "11"],
        ["01", "00", "13"],
    ]


def test_order_over_windows_and_partitions_stays_what_it_was():
    # Frozen likewise: shards within a window, at its end, and across two. All lengths differ.
    counts = [8, 24, 16, 40, 7]
    source = Counts(counts)
    for number, count in enumerate(counts):
        rows = source.rows(f"Train-{number:06d}.tar")
        rows.num_samples[:] = 16_000 + (100 * number + np.arange(count)) * 7_919 % 9_973
        source.made[rows.shard] = rows
    digests = []
    for partitions in (1, 2):
        plan = make_plan(source, seed=7, shuffle_buffer_size=24, partitions=partitions)
        order = [[(row.shard, row.row) for row in batch] for epoch in (0, 1) for batch in epoch_of(plan, epoch)]
        digests.append(hashlib.sha256(json.dumps(order).encode()).hexdigest()[:16])
    assert digests == ["b80d2903db7f0601", "db4d6ff46c134134"]


def test_epochs_and_seeds_have_orders_of_their_own():
    source = Counts([50, 60, 70])
    orders = [epoch_of(make_plan(source, seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4


def test_without_shuffling_every_epoch_and_seed_has_the_same_order():
    source = Counts([50, 60, 70])
    plans = [make_plan(source, seed=seed, shuffle=False) for seed in (1, 2)]
    assert epoch_of(plans[0], 0) == epoch_of(plans[0], 4) == epoch_of(plans[1], 0)


def test_without_shuffling_a_window_is_sorted_by_duration():
    batches = epoch_of(make_plan(Counts([30, 30]), shuffle=False), 0)
    lengths = [row.num_samples for batch in batches for row in batch]
    assert lengths == sorted(lengths)


def test_equal_durations_are_mixed_and_not_kept_in_key_order():
    source = Counts([64])
    rows = source.rows("Train-000000.tar")
    rows.num_samples[:] = 16_000
    source.made["Train-000000.tar"] = rows
    keys = [row.row for row in make_plan(source, bucket_batches=8).global_batch(0, 0)]
    assert keys != sorted(keys)


def test_utterances_of_a_shard_that_straddles_two_windows_are_mixed_anew_in_each_epoch():
    plan = make_plan(Counts([100]), shuffle_buffer_size=48)
    first = [{row.row for step in range(6) for row in plan.global_batch(epoch, step)} for epoch in (0, 1)]
    assert first[0] != first[1]


def test_window_is_whole_duration_groups_when_bigger_than_one():
    source = Counts([1000])
    assert make_plan(source, shuffle_buffer_size=100, bucket_batches=5).window_steps == 15
    assert make_plan(source, shuffle_buffer_size=100, bucket_batches=20).window_steps == 13


def test_only_the_shards_of_the_window_are_read():
    source = Counts([16] * 100)
    plan = make_plan(source, shuffle_buffer_size=64)
    plan.global_batch(0, 100)
    assert len(source.read) <= 6
    for step in range(100, 108):
        plan.global_batch(0, step)
    assert sum(source.read.values()) <= 11  # at most one more window


def test_resuming_deep_in_ten_million_utterances_takes_less_than_two_seconds():
    plan = make_plan(Counts([2_000] * 5_000), global_batch_size=32, shuffle_buffer_size=65_536, bucket_batches=32)
    started = time.perf_counter()
    assert len(plan.global_batch(7, 200_000)) == 32
    assert time.perf_counter() - started < 2.0


def test_padding_of_durations_like_msp_podcast_is_within_five_percent():
    plan = make_plan(Counts([1_000] * 20), global_batch_size=32, shuffle_buffer_size=65_536, bucket_batches=32)
    parts = [split_global_batch(batch, 1, 1, 32)[0][0] for batch in epoch_of(plan, 0)]
    padding = 1 - sum(part.real_samples for part in parts) / sum(part.padded_samples for part in parts)
    assert padding <= 0.05


def test_batches_of_one_window_come_in_mixed_durations():
    plan = make_plan(Counts([1_000] * 4), global_batch_size=32, shuffle_buffer_size=65_536, bucket_batches=32)
    means = [np.mean([row.num_samples for row in batch]) for batch in epoch_of(plan, 0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_digest_changes_with_everything_that_changes_the_order():
    source, other = Counts([30]), Counts([30])
    other.digest = "e" * 64
    digests = [make_plan(source).digest, make_plan(other).digest]
    digests += [
        make_plan(source, **{name: value}).digest
        for name, value in {
            "global_batch_size": 9,
            "seed": 2,
            "shuffle_buffer_size": 65,
            "bucket_batches": 3,
            "partitions": 2,
            "shuffle": False,
        }.items()
    ]
    digests.append(
        BatchSampler(source, ("Test1",), global_batch_size=8, seed=1, shuffle_buffer_size=64, bucket_batches=2).digest
    )
    assert len(set(digests)) == len(digests)
    assert make_plan(Counts([30])).digest == digests[0]


def test_digest_of_a_merged_set_is_that_of_its_plain_set():
    merged = Counts([30])
    merged.digest, merged.content_digest = "e" * 64, Counts.digest
    assert make_plan(merged).digest == make_plan(Counts([30])).digest


def test_permutations_stay_what_they_were():
    assert shuffled(6, 1, "x").tolist() == [4, 1, 5, 0, 2, 3]


def test_splits_without_utterances_are_refused():
    with pytest.raises(ConfigError, match="splits 'Train' hold no utterance"):
        make_plan(Counts([0]))


def test_position_outside_the_plan_is_refused():
    plan = make_plan(Counts([20]))
    with pytest.raises(ConfigError, match=r"\(epoch 0, step 3\) is not in the plan.*steps 0 to 2"):
        plan.global_batch(0, 3)
