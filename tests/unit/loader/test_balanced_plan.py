"""Batches with as many utterances of each category."""

import pickle
from collections import Counter

import pytest

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.loader.mixed_plan import balanced_plan
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from tests.helpers.examples.tones import CATEGORIES, NUM_TRAIN, build_tones

OF = {f"u.{number}": CATEGORIES[number % 3] for number in range(NUM_TRAIN)}
"""Category of each training utterance: 13 happy ones, 12 sad ones, 12 of none."""


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shard_set(build_tones(tmp_path_factory.mktemp("tones")))


def make(
    shard_set: ShardSet,
    *,
    size: int = 7,
    ranks: Ranks | None = None,
    categories: tuple[str, ...] = ("Happy", "Sad"),
    category_map: dict[str, str] | None = None,
    splits: tuple[str, ...] = ("Train",),
    shuffle: bool = True,
) -> Loader:
    return Loader(
        shard_set, splits, batch=BatchConfig(global_batch_size=size, micro_batch_size=3, balanced=True),
        data=DataConfig(shards="", num_workers=0, shuffle_buffer_size=20), targets=DIMENSIONS, seed=5,
        ranks=ranks or Ranks(), categories=categories, category_map=category_map, shuffle=shuffle,
    )  # fmt: skip


def keys(loader: Loader, epoch: int) -> list[list[str]]:
    return [
        sorted(
            key
            for batch in step.micro_batches
            for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True)
            if weight > 0
        )
        for step in loader.epoch(epoch)
    ]


def test_each_category_has_its_place_in_every_batch_and_the_largest_comes_once(shard_set: ShardSet):
    loader = make(shard_set)
    assert (loader.steps_per_epoch, loader.num_utterances) == (5, 25), "13 happy ones, 3 a step"
    seen: Counter[str] = Counter()
    for epoch in range(3):
        steps = keys(loader, epoch)
        for step in steps:
            counts = Counter(OF[key] for key in step)
            assert counts["Happy"] in (2, 3)
            assert counts["Sad"] == 4, "12 in 3 steps"
            assert set(counts) == {"Happy", "Sad"}
        happy = [key for step in steps for key in step if OF[key] == "Happy"]
        assert len(happy) == len(set(happy)) == 13
        seen.update(key for step in steps for key in step if OF[key] == "Sad")
    assert set(seen.values()) == {5}, "15 steps of four are five times all twelve"


def test_categories_are_those_of_the_map(shard_set: ShardSet):
    swapped = make(shard_set, categories=("calm", "Sad"), category_map={"Happy": "calm"})
    assert all({OF[key] for key in step} == {"Happy", "Sad"} for step in keys(swapped, 0))


def test_ranks_share_the_batches_and_a_copy_has_the_same_plan(shard_set: ShardSet):
    alone = keys(make(shard_set), 1)
    halves = [keys(make(shard_set, ranks=Ranks(rank=rank, num_ranks=2)), 1) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*halves, strict=True)] == alone
    plan = make(shard_set).plan
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.digest == plan.digest
    assert copy.global_batch(2, 3) == plan.global_batch(2, 3)
    assert make(shard_set, categories=("Sad", "Happy")).plan.digest != plan.digest


def test_evaluation_has_every_utterance_once(shard_set: ShardSet):
    assert sorted(key for step in keys(make(shard_set, shuffle=False), 0) for key in step) == sorted(OF)


def test_category_without_an_utterance_or_a_place_is_refused(shard_set: ShardSet):
    with pytest.raises(ConfigError, match=r"global_batch_size = 1 has no place for each of 2 categories"):
        make(shard_set, size=1)
    with pytest.raises(ConfigError, match=r"no utterance of Train is of category 'Sad'"):
        balanced_plan(
            shard_set, ("Train",), categories=("Happy", "Sad"), category_map={"Sad": ""}, global_batch_size=8, seed=5,
            shuffle_buffer_size=20, bucket_batches=1,
        )  # fmt: skip
