"""A condition is fitted once more by ``shards/check.py``: leaks that no count betrays are found."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ccts_dist.distributed import Ranks
from ccts_dist.losses.gate import condition_sums, fit_condition
from ccts_dist.shards.format.teacher_cache import read_cache_manifest
from ccts_dist.shards.merge import merge_shards
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import open_teacher_cache
from ccts_dist.shards.teacher_cache_writer import write_cache_manifest
from ccts_dist.teacher import cache_teacher
from ccts_dist.teacher.fit import FitSums, fit_teacher, read_shard_fit
from ccts_dist.teacher.refit_check import _differences, fit_again, refit_findings
from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher
from tests.helpers.processes.launching import run_forked

SPLITS = {"Train": 21, "More": 21, "Development": 7}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[ShardSet, Path]:
    """A shard set and its cache."""
    folder = tmp_path_factory.mktemp("refit")
    shard_set = build_small_shards(folder / "corpus", SPLITS)
    teacher = save_small_teacher(folder / "teacher")
    cache_teacher(
        [teacher], shard_set, folder / "cache", ranks=Ranks(), device=torch.device("cpu"), batch_seconds=1.0,
        name="a folder", registry_version="",
    )  # fmt: skip
    return shard_set, folder / "cache"


def fit_on(shard_set: ShardSet, cache: Path, split: str, targets) -> FitSums:
    parts = [
        read_shard_fit(cache, shard_set, shard.name, targets=targets, embedding_size=8).sums
        for shard in shard_set.shards_of([split])
    ]
    return fit_teacher(parts, targets=targets, splits=["Train"])[0]


def plant(shard_set: ShardSet, cache: Path, condition) -> None:
    """Put this condition into the cache, in a manifest that knows its digest."""
    opened = open_teacher_cache(cache, shard_set)
    manifest, _ = read_cache_manifest(opened.store)
    splits = list(shard_set.manifest.splits)
    write_cache_manifest(cache, shard_set, manifest.teacher, splits=splits, condition=condition, sums={})


def test_the_condition_of_a_pass_is_found_again_and_agrees_with_numpy(made):
    shard_set, cache = made
    opened = open_teacher_cache(cache, shard_set)
    again, _ = fit_again(shard_set, opened)
    assert again.num_rows == opened.condition.num_rows == (21, 18, 21)
    assert refit_findings(str(shard_set.root), str(cache)) == []
    assert refit_findings(str(shard_set.root), None) == []  # no teacher, nothing to state
    rows = [(shard_set.rows(shard.name), shard.name) for shard in shard_set.shards_of(["Train"])]
    label = np.concatenate([own.labels["activation"] for own, _ in rows])
    printed = np.array(
        [opened.read(name, row, key).prediction[0] for own, name in rows for row, key in enumerate(own.keys)],
        np.float64,
    )
    assert (again.w[0], again.b[0]) == pytest.approx(tuple(np.polyfit(printed, label, 1)), rel=1e-6)


@pytest.mark.integration
def test_a_fit_on_as_many_other_utterances_is_found_in_cache_and_merged_shards(made, tmp_path):
    shard_set, cache = made
    opened = open_teacher_cache(cache, shard_set)
    true = opened.condition
    leaked = fit_on(shard_set, cache, "More", opened.targets)
    assert leaked.num_rows == true.num_rows  # no count reports
    try:
        plant(shard_set, cache, leaked)
        found = [str(finding) for finding in refit_findings(str(shard_set.root), str(cache))]
        assert len(found) == 3
        assert found[0].startswith("condition.json - is not the fit on Train: of 'activation' it has ")
        assert f"w = {leaked.w[0]:.9g}, b = {leaked.b[0]:.9g}, and the labels and outputs there give w = " in found[0]
        merge_shards(shard_set, open_teacher_cache(cache, shard_set), tmp_path / "merged")
        assert [str(finding) for finding in refit_findings(str(tmp_path / "merged"), None)] == found
        command = [sys.executable, "shards/check.py", str(shard_set.root), "--teacher-cache", str(cache)]
        printed = run_forked(command)
        assert (printed.returncode, printed.stdout.splitlines()) == (1, found)
    finally:
        plant(shard_set, cache, true)
    assert refit_findings(str(shard_set.root), str(cache)) == []


@pytest.mark.parametrize("name", ["num_rows", "w", "b", "residual_std"])
def test_one_number_that_is_off_is_named(made, name: str):
    shard_set, cache = made
    true = open_teacher_cache(cache, shard_set).condition
    values = list(getattr(true, name))
    values[1] = values[1] - 1 if name == "num_rows" else values[1] + 1e-4
    try:
        plant(shard_set, cache, replace(true, **{name: tuple(values)}))
        (found,) = refit_findings(str(shard_set.root), str(cache))
        assert f"of {true.targets[1]!r} it has " in found.what
        assert f"{name} = " in found.what
    finally:
        plant(shard_set, cache, true)


def test_a_condition_on_too_few_labels_cannot_be(made):
    shard_set, cache = made
    true = open_teacher_cache(cache, shard_set).condition
    small = build_small_shards(cache.parent / "few", {"Train": 21, "Two": 2})
    cache_teacher(
        [cache.parent / "teacher"], small, cache.parent / "cache of few", ranks=Ranks(), device=torch.device("cpu"),
        batch_seconds=1.0, name="a folder", registry_version="",
    )  # fmt: skip
    plant(small, cache.parent / "cache of few", replace(true, splits=("Two",)))
    (found,) = refit_findings(str(small.root), str(cache.parent / "cache of few"))
    assert "cannot be the fit on Two: Target" in found.what


def test_rounding_of_a_teacher_that_states_nearly_the_same_of_all_is_no_finding():
    printed = 0.5 + 5e-6 * np.random.default_rng(0).standard_normal(3_000).astype(np.float32)[:, None]
    label = np.random.default_rng(1).random((3_000, 1))
    sums = condition_sums(torch.from_numpy(printed), torch.from_numpy(label))
    other = sums.clone()
    other[3] *= 1 + 4e-16  # what another order of adding may change
    one, two = (fit_condition(given, ["valence"], ["Train"]) for given in (sums, other))
    assert abs(one.w[0] - two.w[0]) > 1e-4
    assert list(_differences(one, two, sums)) == []
    assert list(_differences(replace(one, w=(one.w[0] + 1,), b=(one.b[0],)), two, sums)) != []
