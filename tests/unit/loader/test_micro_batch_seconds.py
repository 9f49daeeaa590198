"""Micro-batches cut by seconds of padded audio, as many in each step as make it shortest."""

import pytest

from ccts_dist.batches import StepBatches, padded_samples
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from tests.helpers.examples.tones import NUM_TRAIN, Words, build_tones, make_loader, number_teacher, same_steps

SECONDS = 1.0
"""The tones last .1 to .4 s."""


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory) -> ShardSet:
    return open_shard_set(build_tones(tmp_path_factory.mktemp("seconds")))


def by_seconds(shard_set: ShardSet, seconds: float = SECONDS, **settings) -> Loader:
    settings = {"micro_batch_size": 8, "micro_batch_overhead_seconds": 0.2, "global_batch_size": 12, **settings}
    return make_loader(shard_set, micro_batch_seconds=seconds, **settings)


def counted(steps: tuple[StepBatches, ...]) -> list[str]:
    """Keys that count, over ranks and micro-batches."""
    batches = [batch for step in steps for batch in step.micro_batches]
    return [key for batch in batches for key, w in zip(batch.keys, batch.weight.tolist(), strict=True) if w]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_rank_takes_as_many_micro_batches_and_none_is_above_the_limits(shard_set, num_ranks):
    loaders = [by_seconds(shard_set, ranks=Ranks(rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    numbers, seen = set(), []
    for steps in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        assert len({len(step.micro_batches) for step in steps}) == 1
        numbers.add(len(steps[0].micro_batches))
        for batch in (batch for step in steps for batch in step.micro_batches):
            assert len(batch.keys) <= 8
            assert padded_samples(batch) <= SECONDS * SAMPLE_RATE_HZ
        batch = [row.key for row in loaders[0].plan.global_batch(1, steps[0].step)]
        assert sorted(counted(steps)) == sorted(batch), "the batches are those of a cut by count"
        seen += batch
    assert len(seen) == len(set(seen)) == NUM_TRAIN
    if num_ranks == 1:
        assert len(numbers) > 1, "their number differs from step to step"


def test_what_is_foreseen_of_a_window_is_what_is_read(shard_set):
    loader = by_seconds(shard_set, shuffle_buffer_size=64)
    steps = list(loader.epoch(0))
    cuts = loader.cuts()
    assert (cuts.fewest_micro_batches, cuts.most_micro_batches) == (
        min(len(step.micro_batches) for step in steps), max(len(step.micro_batches) for step in steps)
    )  # fmt: skip
    padded = [sum(map(padded_samples, step.micro_batches)) for step in steps]
    assert sum(part.padded_samples for part in cuts.largest_step) == max(padded)
    assert cuts.largest.padded_samples == max(padded_samples(batch) for step in steps for batch in step.micro_batches)
    real = sum(int(batch.num_samples.sum()) for step in steps for batch in step.micro_batches)
    assert cuts.padding == pytest.approx(1 - real / sum(padded))
    assert cuts.padding < make_loader(shard_set, micro_batch_size=12, global_batch_size=12).padding(0)


def test_threads_and_a_start_within_the_epoch_change_nothing(shard_set, tmp_path):
    reading = {"encode_text": Words(), "teacher": number_teacher(tmp_path, shard_set)}
    inline, threaded = by_seconds(shard_set, **reading), by_seconds(shard_set, workers=2, **reading)
    assert same_steps(list(inline.epoch(0)), list(threaded.epoch(0)))
    assert same_steps(list(inline.epoch(0))[2:], list(threaded.epoch(0, 2)))
    threaded.close()


def test_nodes_that_read_their_own_streams_take_as_many_micro_batches(shard_set):
    loaders = [
        by_seconds(shard_set, 0.5, partitions=2, ranks=Ranks(rank=rank, num_ranks=2, num_nodes=2)) for rank in range(2)
    ]
    own, numbers = [], set()
    for steps in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert sorted(counted(steps)) == sorted(r.key for r in loaders[0].plan.global_batch(0, steps[0].step))
        rows = [loader.plan.global_batch(0, steps[0].step, loader.partitions) for loader in loaders]
        own.append(sum(row.num_samples for row in rows[0]) != sum(row.num_samples for row in rows[1]))
        numbers.add(len(steps[0].micro_batches))
    assert any(own), "nodes have audio of different lengths, and agree all the same"
    assert len(numbers) > 1


def test_utterance_longer_than_the_limit_is_refused_before_anything_is_read(shard_set):
    with pytest.raises(
        ConfigError, match=r"batch.micro_batch_seconds = 0.3: the longest .* takes 0.39 s. Raise .* 0.39, or"
    ):
        by_seconds(shard_set, 0.3)
    capped = by_seconds(shard_set, 0.3, max_duration_s=0.3)
    assert all(padded_samples(batch) <= 4_800 for step in capped.epoch(0) for batch in step.micro_batches)


def test_utterance_that_is_scored_may_be_longer_and_is_then_alone(shard_set):
    steps = list(by_seconds(shard_set, 0.2, splits=("Test1",), shuffle=False).epoch(0))
    assert len(counted(tuple(steps))) == 5
    long = [batch for step in steps for batch in step.micro_batches if batch.audio.shape[1] > 0.2 * SAMPLE_RATE_HZ]
    assert long
    assert all(padded_samples(batch) <= max(b.audio.shape[1] for b in long) for s in steps for batch in s.micro_batches)
