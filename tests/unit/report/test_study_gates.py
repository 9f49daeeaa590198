"""Whom a study's gate rejects, for every gate: recounted from the cache's predictions and the labels by numpy."""

from pathlib import Path

import numpy as np
import pytest

from ccts_dist.config import parse_run
from ccts_dist.distributed import Ranks
from ccts_dist.loader.row_gate import uniform
from ccts_dist.records import DIMENSIONS
from ccts_dist.report.study.results import count_rejected, distilled_shares
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.shards.teacher_cache import open_teacher_cache
from ccts_dist.teacher.robust import robust_condition
from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher
from tests.helpers.processes.small_runs import SPEECH, make_cache

SEED = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    shard_set = build_small_shards(folder / "corpus", {"Train": 40, "Test1": 4})
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    return folder


def shares(place: Path, **distill: object) -> dict[str, float]:
    tree = {
        "run_name": "student",
        "output_dir": str(place / "run"),
        "seed": SEED,
        "data": {"shards": str(place / "corpus" / "shards"), "teacher_cache": str(place / "cache")},
        "model": {"embedding_dim": 8, "speech": SPEECH},
        "distill": distill,
    }
    return distilled_shares(parse_run(tree, source="run.toml"))


def residuals(place: Path, *, robust: bool = False) -> tuple[list[str], np.ndarray]:
    """Keys of the training utterances, and their residuals in standard deviations [rows dim]; 0 without a label."""
    shard_set = open_shard_set(place / "corpus" / "shards")
    cache = open_teacher_cache(str(place / "cache"), shard_set)
    fit = cache.condition
    if robust:
        fit = robust_condition(cache, shard_set, ("Train",), ranks=Ranks(), skip_damaged=False)
    keys, rows = [], []
    for shard in shard_set.shards_of(("Train",)):
        table = shard_set.rows(shard.name)
        for row, key in enumerate(table.keys):
            label = np.array([table.labels[target][row] for target in DIMENSIONS])
            off = np.array(fit.w) * cache.read(table.shard, row, key).prediction + np.array(fit.b) - label
            keys.append(key)
            rows.append(np.nan_to_num(off / np.array(fit.residual_std)))
    assert len(keys) == 40
    return keys, np.abs(np.array(rows))


@pytest.mark.parametrize("residual_scale", ["std", "robust"])
def test_threshold_counts_by_the_fit_that_the_run_used(place: Path, residual_scale: str):
    keys, off = residuals(place, robust=residual_scale == "robust")
    found = shares(place, gate="any-dimension", threshold=1.2, residual_scale=residual_scale)
    expected = dict(zip(keys, (off <= 1.2).all(axis=1).astype(float).tolist(), strict=True))
    assert found == expected
    assert 0 < sum(found.values()) < 40


def test_the_two_fits_reject_others(place: Path):
    both = [shares(place, gate="any-dimension", threshold=1.2, residual_scale=name) for name in ("std", "robust")]
    assert both[0] != both[1]


def test_only_the_targets_of_the_gate_are_looked_at(place: Path):
    keys, off = residuals(place)
    found = shares(place, gate="any-dimension", threshold=1.2, gate_targets=["valence"])
    assert found == dict(zip(keys, (off[:, 1] <= 1.2).astype(float).tolist(), strict=True))


def test_share_of_a_row_is_that_of_its_dimensions_or_its_weight(place: Path):
    keys, off = residuals(place)
    found = shares(place, gate="per-dimension", threshold=1.2, prediction_weight=1.0)
    assert found == pytest.approx(dict(zip(keys, (off <= 1.2).mean(axis=1).tolist(), strict=True)))
    found = shares(place, gate="soft")
    assert found == pytest.approx(dict(zip(keys, np.exp(-(off.max(axis=1) ** 2) / 2).tolist(), strict=True)))


def test_random_gate_rejects_by_seed_and_key(place: Path):
    found = shares(place, gate="random", reject_fraction=0.4)
    assert found == {key: float(uniform(SEED, key) >= 0.4) for key in found}
    assert 0 < sum(found.values()) < 40


def test_random_gate_without_a_share_rejects_as_many_as_the_threshold_would(place: Path):
    by_threshold = shares(place, gate="any-dimension", threshold=1.2)
    share = 1 - sum(by_threshold.values()) / 40
    found = shares(place, gate="random", threshold=1.2)
    assert found == {key: float(uniform(SEED, key) >= share) for key in found}


def test_keys_gate_admits_its_keys(place: Path):
    listed = ["Train.3", "Train.8"]
    (place / "keys.txt").write_text("\n".join(listed))
    found = shares(place, gate="keys", gate_keys=str(place / "keys.txt"))
    assert {key for key, share in found.items() if share} == set(listed)
    assert len(found) == 40


def test_transcripts_of_no_recognizer_pass_the_confidence_gate(place: Path):
    assert set(shares(place, gate="confidence", min_confidence=0.9).values()) == {1.0}


def test_parts_of_utterances_are_added_up():
    counted = count_rejected([True, True, False], [0.25, 1.0, 0.5], percent=60, seed=1)
    assert (counted.num_wrong, counted.wrong_rejected) == (2, 0.75)
    assert (counted.num_right, counted.right_rejected) == (1, 0.5)
