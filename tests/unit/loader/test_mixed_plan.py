"""Batches with a set share of labelled utterances: every utterance comes, at any position, and none of another kind."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.mixed_plan import MixedPlan
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards import ShardSet, open_shard_set
from tests.helpers.examples.shard_examples import build_example, make_utterances

NUM_LABELLED, NUM_TRAIN = 8, 36


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("set")
    utterances = make_utterances(folder, 48)
    train = [number for number, one in enumerate(utterances) if one.split == "Train"]
    for place, number in enumerate(train):
        if place % 9 not in (2, 5):
            utterances[number] = replace(utterances[number], labels={})
    build_example(utterances, folder / "shards", folder)
    return open_shard_set(folder / "shards")


def plan(shard_set: ShardSet, **changes: object) -> MixedPlan:
    settings: dict = {
        "targets": DIMENSIONS, "labelled_share": 0.4, "global_batch_size": 10, "seed": 5, "shuffle_buffer_size": 20,
        "bucket_batches": 1,
    }  # fmt: skip
    return MixedPlan(shard_set, ("Train",), **settings | changes)


def is_labelled(row) -> bool:
    return any(row.table.labels[target][row.row] == row.table.labels[target][row.row] for target in DIMENSIONS)


def test_each_batch_has_its_share_and_each_utterance_comes(shard_set: ShardSet):
    mixed = plan(shard_set)
    # 28 without a label, 6 a batch: 5 steps; 8 with one, 4 a batch: 2 steps, which begin anew after them.
    assert (mixed.steps_per_epoch, mixed.largest_batch, mixed.num_utterances) == (5, 10, NUM_TRAIN)
    seen: Counter[str] = Counter()
    for epoch in range(2):
        once: Counter[str] = Counter()
        for step in range(5):
            batch = mixed.global_batch(epoch, step)
            labelled = [row.key for row in batch if is_labelled(row)]
            assert len(labelled) == 4
            assert len(batch) - len(labelled) in (5, 6)
            assert [row.num_samples for row in batch] == sorted(row.num_samples for row in batch)
            seen.update(labelled)
            once.update(row.key for row in batch if not is_labelled(row))
        assert len(once) == NUM_TRAIN - NUM_LABELLED
        assert set(once.values()) == {1}
    assert len(seen) == NUM_LABELLED
    assert set(seen.values()) == {5}, "ten steps of four are five times all eight"


def test_position_is_known_without_what_came_before_and_the_shards_of_a_window_hold_its_utterances(shard_set: ShardSet):
    one, other = plan(shard_set), plan(shard_set)
    batches = {(epoch, step): one.global_batch(epoch, step) for epoch in range(3) for step in range(5)}
    for place in reversed(batches):
        assert other.global_batch(*place) == batches[place]
    for (epoch, step), batch in batches.items():
        assert {row.shard for row in batch} <= set(one.shards_of_window(epoch, step // one.window_steps))
    assert one.digest == other.digest
    assert len({one.digest, plan(shard_set, seed=6).digest, plan(shard_set, labelled_share=0.5).digest}) == 3


def test_share_is_kept_where_few_utterances_would_leave_places_empty(shard_set: ShardSet):
    one, other = (plan(shard_set, labelled_share=0.35, global_batch_size=20) for _ in range(2))
    # 28 without a label, 13 a batch: 3 steps; 8 with one, 7 a batch: no two batches of four, but as they come.
    assert (one.steps_per_epoch, one.largest_batch) == (3, 10 + 7)
    places = [(epoch, step) for epoch in range(8) for step in range(3)]
    batches = {place: one.global_batch(*place) for place in places}
    seen: Counter[str] = Counter()
    for (epoch, step), batch in batches.items():
        labelled = [row.key for row in batch if is_labelled(row)]
        assert len(labelled) == 7
        assert {row.shard for row in batch} <= set(one.shards_of_window(epoch, step // one.window_steps))
        assert [row.num_samples for row in batch] == sorted(row.num_samples for row in batch)
        seen.update(labelled)
    assert set(seen.values()) == {21}, "24 steps of seven are 21 times all eight"
    assert len(seen) == NUM_LABELLED
    assert all(other.global_batch(*place) == batches[place] for place in reversed(places))


def test_more_places_than_utterances_are_filled_with_repeated_ones(shard_set: ShardSet):
    mixed = plan(shard_set, labelled_share=0.65, global_batch_size=20)
    assert [sum(map(is_labelled, mixed.global_batch(0, step))) for step in range(mixed.steps_per_epoch)] == [13] * 4


def test_both_kinds_may_take_as_many_steps(shard_set: ShardSet):
    mixed = plan(shard_set, labelled_share=0.2, global_batch_size=20)
    assert mixed.steps_per_epoch == 2
    assert [sum(map(is_labelled, mixed.global_batch(0, step))) for step in range(2)] == [4, 4]


def test_ranks_share_the_batches_that_one_alone_reads(shard_set: ShardSet):
    def keys(rank: int, num_ranks: int) -> list[set[str]]:
        loader = Loader(
            shard_set, ("Train",), batch=BatchConfig(global_batch_size=10, micro_batch_size=5, labelled_share=0.4),
            data=DataConfig(shards=str(shard_set.root), num_workers=0), targets=DIMENSIONS, seed=5,
            ranks=Ranks(rank=rank, num_ranks=num_ranks),
        )  # fmt: skip
        steps = [
            {
                key
                for batch in step.micro_batches
                for key, weight in zip(batch.keys, batch.weight, strict=True)
                if weight > 0
            }
            for step in loader.epoch(0)
        ]
        loader.close()
        return steps

    alone = keys(0, 1)
    halves = [keys(rank, 2) for rank in range(2)]
    assert [one | other for one, other in zip(*halves, strict=True)] == alone
    assert not any(one & other for one, other in zip(*halves, strict=True))
    # Validation has every utterance once, whatever the share.
    valid = Loader(
        shard_set, ("Train",), batch=BatchConfig(global_batch_size=10, labelled_share=0.4),
        data=DataConfig(shards=str(shard_set.root)), targets=DIMENSIONS, seed=5, ranks=Ranks(), shuffle=False,
    )  # fmt: skip
    assert (valid.steps_per_epoch, valid.num_utterances) == (4, NUM_TRAIN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labelled_share": 0.1}, r"labelled_share = 0\.1 of batch.global_batch_size = 10 is 1: a batch needs 2"),
        ({"labelled_share": 0.99}, "is 10: a batch needs 2 labelled utterances for a CCC, and place for others"),
    ],
)
def test_share_that_leaves_no_place_is_refused(shard_set: ShardSet, changes, words):
    with pytest.raises(ConfigError, match=words):
        plan(shard_set, **changes)


def test_splits_of_one_kind_are_refused(tmp_path: Path):
    build_example(make_utterances(tmp_path), tmp_path / "shards", tmp_path)
    with pytest.raises(ConfigError, match=r"labelled_share = 0\.4: every utterance has a label in Train"):
        plan(open_shard_set(tmp_path / "shards"))
