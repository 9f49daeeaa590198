"""The variance of raters as a label: read from the shards, missing where the corpus has none, damaged as all else."""

from pathlib import Path

import pytest

from ccts_dist.config import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.loader.decode import read_label_variance
from ccts_dist.loader.loader import Loader
from ccts_dist.records import varied_target
from ccts_dist.shards.format.schema import label_variance_of, num_raters_of
from ccts_dist.shards.shard_set import ShardSet
from tests.helpers.faults import damage
from tests.helpers.processes.small_runs import build_two_kinds

TARGETS = ("valence", "valence.variance", "activation.variance")


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    return build_two_kinds(tmp_path, num_train=12, beside=True)


def loader(shard_set: ShardSet, *, targets: tuple[str, ...] = TARGETS, damaged: str = "raise") -> Loader:
    return Loader(
        shard_set, ("Train",), batch=BatchConfig(global_batch_size=4, micro_batch_size=4),
        data=DataConfig(shards=str(shard_set.root), num_workers=0, on_corrupt=damaged), targets=targets, seed=0,
            ranks=Ranks(),
    )  # fmt: skip


def test_label_is_the_variance_where_it_is_known(shard_set: ShardSet):
    seen = {}
    for step in loader(shard_set).epoch(0):
        for batch in step.micro_batches:
            seen |= dict(zip(batch.keys, batch.labels.tolist(), strict=True))
    assert len(seen) == 12
    for key, (valence, variance, of_activation) in seen.items():
        number = int(key.removeprefix("Train_"))
        assert 0 <= valence <= 1
        assert of_activation != of_activation, "nobody reported how far the raters of activation were apart"
        if number % 3 == 1:
            assert variance != variance
        else:
            assert variance == pytest.approx(0.11 if number % 2 else 0.01)


def test_targets_that_are_variances_are_reported_from_those_that_are_ratings():
    assert varied_target("valence.variance") == "valence"
    assert varied_target("valence") is None
    assert varied_target(".variance") is None


def test_variance_of_what_is_no_label_is_refused(shard_set: ShardSet):
    with pytest.raises(ConfigError, match="target 'joy' is not a label"):
        loader(shard_set, targets=("joy.variance",))


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"label_variance": 3}', b'{"label_variance": {"a": "much"}}', b"no",
                                  b'{"label_variance": {"a": -0.1}}', b'{"label_variance": {"a": true}}',
                                  b'{"label_variance": {"a": 1' + b"0" * 400 + b"}}"])  # fmt: skip
def test_json_without_variances_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"."):
        label_variance_of(data)


def test_number_of_raters_is_0_where_it_is_unknown_and_refused_where_it_is_none():
    assert [num_raters_of(data) for data in (b'{"num_raters": 5}', b'{"num_raters": null}')] == [5, 0]
    with pytest.raises(ValueError, match="no num_raters in it"):
        num_raters_of(b"{}")
    for value in ("-1", "true", "2.5", '"five"', "9" * 400):
        with pytest.raises(ValueError, match="its num_raters is"):
            num_raters_of(f'{{"num_raters": {value}}}'.encode())


def test_damaged_json_stops_the_reading_or_gives_the_row_weight_0(shard_set: ShardSet):
    name = shard_set.shards_of(("Train",))[0].name
    key = shard_set.rows(name).keys[0]
    damage.flip_in_member(Path(shard_set.root), name, 0, "json")
    with pytest.raises(ShardError):
        read_label_variance(shard_set, shard_set.rows(name), 0)
    with pytest.raises(ShardError):
        list(loader(shard_set).epoch(0))
    batches = [batch for step in loader(shard_set, damaged="skip").epoch(0) for batch in step.micro_batches]
    weights = {k: w for batch in batches for k, w in zip(batch.keys, batch.weight.tolist(), strict=True)}
    assert [k for k, w in weights.items() if w == 0] == [key]
