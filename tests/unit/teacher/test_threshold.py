"""The threshold that leaves out a given share: numbers worked by hand, and the gate that it makes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.distributed import Ranks
from ccts_dist.errors import TeacherError
from ccts_dist.losses.gate import apply_gate
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards import ShardSet, TeacherCache, open_shard_set, open_teacher_cache
from ccts_dist.teacher.threshold import _cut, kth_smallest, threshold_rejecting
from tests.helpers.examples.shard_examples import CONDITION, build_example, example_cache, flip_bit, make_utterances

NUM_TRAIN = 24
UNLABELLED = (0, 8)
"""Numbers of training utterances without any label."""


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("set")
    utterances = make_utterances(folder, 32)
    for number in UNLABELLED:
        utterances[number] = replace(utterances[number], labels={})
    build_example(utterances, folder / "shards", folder)
    return open_shard_set(folder / "shards")


@pytest.fixture(scope="module")
def cache(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    return example_cache(tmp_path_factory.mktemp("cache"), shard_set)


def training_rows(shard_set: ShardSet, cache: TeacherCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions of the teacher and labels."""
    predictions, labels = [], []
    for shard in shard_set.shards_of(("Train",)):
        rows = shard_set.rows(shard.name)
        predictions += [cache.read(shard.name, row, key).prediction for row, key in enumerate(rows.keys)]
        labels.append(np.stack([rows.labels[name] for name in DIMENSIONS], 1))
    return torch.from_numpy(np.array(predictions)), torch.from_numpy(np.concatenate(labels))


def find(share: float, shard_set: ShardSet, cache: TeacherCache) -> float:
    return threshold_rejecting(share, cache, shard_set, ("Train",), ranks=Ranks())


@pytest.mark.parametrize(("share", "expected"), [(0.01, 0), (0.05, 1), (0.25, 5), (0.5, 11), (0.95, 20)])
def test_gate_at_the_threshold_leaves_out_that_share_of_the_labelled_utterances(
    shard_set: ShardSet, cache: TeacherCache, share: float, expected: int
):
    prediction, label = training_rows(shard_set, cache)
    assert len(label) == NUM_TRAIN
    threshold = find(share, shard_set, cache)
    gate_mask = apply_gate("any-dimension", threshold, CONDITION, prediction, label, torch.ones(NUM_TRAIN))
    assert (~gate_mask).sum() == expected  # floor of the share of 22 that have a label
    assert gate_mask[label.isnan().all(1)].all()
    each = apply_gate("per-dimension", threshold, CONDITION, prediction, label, torch.ones(NUM_TRAIN))
    assert torch.equal(each.all(1), gate_mask)


def test_threshold_is_the_quantile_of_the_widest_residuals(shard_set: ShardSet, cache: TeacherCache):
    prediction, label = (tensor.double().numpy() for tensor in training_rows(shard_set, cache))
    residual = np.array(CONDITION.w) * prediction + np.array(CONDITION.b) - label
    widest = np.nanmax(np.abs(residual[~np.isnan(label).all(1)]) / np.array(CONDITION.residual_std), axis=1)
    low, high = np.sort(widest)[[10, 11]]
    assert find(0.5, shard_set, cache) == pytest.approx((low + high) / 2, rel=1e-6)


def test_only_the_training_splits_are_looked_at(shard_set: ShardSet, cache: TeacherCache):
    both = threshold_rejecting(0.5, cache, shard_set, ("Train", "Development"), ranks=Ranks())
    assert both != find(0.5, shard_set, cache)


def test_damaged_output_is_reported_or_left_out_of_account(shard_set: ShardSet, cache: TeacherCache, tmp_path: Path):
    damaged = example_cache(tmp_path, shard_set)
    shard = shard_set.shards_of(("Train",))[1].name
    flip_bit(tmp_path / shard, 512 + 130)
    opened = open_teacher_cache(damaged.root, shard_set)
    with pytest.raises(TeacherError, match=rf"{shard}: teacher.npy of .* is damaged"):
        find(0.5, shard_set, opened)
    threshold = threshold_rejecting(0.5, opened, shard_set, ("Train",), ranks=Ranks(), skip_damaged=True)
    assert 0 < threshold < math.inf


def test_splits_without_any_label_are_refused(tmp_path: Path):
    utterances = [replace(one, labels={}) if one.split == "Train" else one for one in make_utterances(tmp_path)]
    build_example(utterances, tmp_path / "shards", tmp_path)
    shard_set = open_shard_set(tmp_path / "shards")
    cache = example_cache(tmp_path / "cache", shard_set)
    with pytest.raises(TeacherError, match=r"no utterance of Train has a label to compare with. Set distill.threshold"):
        find(0.5, shard_set, cache)


def test_equal_residuals_at_the_cut_are_all_kept():
    # Half of four would part the two middle ones.
    assert _cut(np.array([1, 2, 2, 3], np.float32), 0.5, "x") == pytest.approx(2, rel=1e-5)
    assert _cut(np.array([1, 2, 2, 3], np.float32), 0.5, "x") > 2
    assert _cut(np.array([1, 2, 4, math.inf], np.float32), 0.25, "x") == pytest.approx(4, rel=1e-5)
    assert _cut(np.array([4, 1, 3, 2], np.float32), 0.25, "x") == 3.5


@given(
    numbers=st.lists(st.floats(0, width=32, allow_nan=False, allow_infinity=True), min_size=1, max_size=40),
    data=st.data(),
)
def test_kth_smallest_is_that_of_the_sorted_numbers(numbers: list[float], data: st.DataObject):
    k = data.draw(st.integers(1, len(numbers)))
    assert kth_smallest(np.array(numbers, np.float32) + 0.0, k) == sorted(numbers)[k - 1]
