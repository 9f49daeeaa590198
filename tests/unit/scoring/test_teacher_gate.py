"""Cached outputs of a teacher for a table's utterances."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.errors import TeacherError
from ccts_dist.loader.row_gate import uniform
from ccts_dist.scoring import Gate, PredictionTable, gate_from, read_table, with_teacher, write_table
from ccts_dist.shards import ShardSet
from tests.helpers.examples.shard_examples import CONDITION, example_cache, example_output, example_shard_set


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return example_shard_set(tmp_path_factory.mktemp("shards"))


def table_of(shard_set: ShardSet, targets: tuple[str, ...]) -> PredictionTable:
    """Train, its first utterance omitted, in the order of the shards."""
    keys, labels = [], []
    for shard in shard_set.shards_of(("Train",)):
        rows = shard_set.rows(shard.name)
        keys += rows.keys
        labels += np.stack([rows.labels.get(t, np.full(len(rows), np.nan)) for t in targets], axis=1).tolist()
    keys, labels = keys[1:], labels[1:]
    count = len(keys)
    return PredictionTable(
        targets=targets, keys=tuple(keys), speakers=("a",) * count, genders=(None,) * count,
        duration_s=np.ones(count), num_words=np.ones(count, dtype=np.int64), labels=np.array(labels),
        predictions=np.full((count, len(targets)), 0.5),
    )  # fmt: skip


def test_residual_and_gate_are_those_of_the_condition_in_the_tables_own_order(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    table = table_of(shard_set, ("valence", "arousal", "activation"))
    teacher = with_teacher(table, cache, shard_set, "Train", gate=Gate(threshold=8.0)).teacher
    assert teacher is not None
    for row, key in enumerate(table.keys):
        activation, valence, _ = example_output(key).prediction.astype(np.float64)
        assert teacher.prediction[row] == pytest.approx([valence, np.nan, activation], nan_ok=True)
        # w, b of valence .5, .25; of activation 1, 0.
        expected = [0.5 * valence + 0.25 - table.labels[row, 0], np.nan, activation - table.labels[row, 2]]
        assert teacher.residual[row] == pytest.approx(expected, nan_ok=True)
        within = [abs(expected[0]) <= 8 * CONDITION.residual_std[1], abs(expected[2]) <= 8 * CONDITION.residual_std[0]]
        assert teacher.gate_mask[row] == all(np.isnan(r) or ok for r, ok in zip(expected[::2], within, strict=True))
    assert teacher.widest == pytest.approx((1.6, np.nan, 0.8), nan_ok=True)
    assert 0 < teacher.gate_mask.sum() < len(table), "else the gate is not seen"


def test_wider_gate_lets_all_pass(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    table = table_of(shard_set, ("valence",))
    teacher = with_teacher(table, cache, shard_set, "Train", gate=Gate(threshold=1e6)).teacher
    assert teacher is not None
    assert teacher.gate_mask.all()


def test_teacher_of_other_targets_is_refused(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    with pytest.raises(
        TeacherError, match="its teacher predicts activation, valence, dominance, and the model arousal"
    ):
        with_teacher(table_of(shard_set, ("arousal",)), cache, shard_set, "Train")


def test_gate_per_dimension_decides_on_each_prediction_in_the_tables_own_order(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    table = table_of(shard_set, ("valence", "arousal", "activation"))
    gate = Gate(name="per-dimension", threshold=8.0, of_run=True)
    found = with_teacher(table, cache, shard_set, "Train", gate=gate)
    assert found.teacher is not None
    wide = np.array(found.teacher.widest)
    expected = ~(np.abs(found.teacher.residual) > wide)  # what is NaN passes
    np.testing.assert_array_equal(found.teacher.gate_mask, expected)
    assert not expected.all(), "else the gate is not seen"
    assert expected[~expected.all(axis=1)].any(), "a row that is out in one dimension stays in others"
    assert expected[:, 1].all()
    write_table(tmp_path / "t.parquet", found)
    read = read_table(tmp_path / "t.parquet").teacher
    assert read is not None
    np.testing.assert_array_equal(read.gate_mask, expected)
    assert read.gate == gate


@pytest.mark.parametrize("name", ["none", "soft"])
def test_gate_without_a_threshold_draws_no_line(shard_set: ShardSet, tmp_path: Path, name: str):
    cache = example_cache(tmp_path / "cache", shard_set)
    table = table_of(shard_set, ("valence", "arousal", "activation"))
    teacher = with_teacher(table, cache, shard_set, "Train", gate=Gate(name=name)).teacher
    assert teacher is not None
    assert np.isnan(teacher.widest).all()
    ratio = np.abs(teacher.residual[:, [0, 2]]) / np.array([CONDITION.residual_std[1], CONDITION.residual_std[0]])
    share = np.exp(-(np.nanmax(np.nan_to_num(ratio), axis=1) ** 2) / 2) if name == "soft" else np.ones(len(table))
    assert teacher.gate_mask.astype(float) == pytest.approx(share)


@pytest.mark.parametrize(
    ("extra", "gate"),
    [
        (
            {"distill": {"gate": "per-dimension", "threshold": 1.25}},
            Gate(name="per-dimension", threshold=1.25, of_run=True),
        ),
        ({"distill": {"gate": "soft", "threshold": None}}, Gate(name="soft", of_run=True)),
        (
            {"distill": {"gate": "random", "threshold": None, "reject_fraction": 0.2, "seed": 5}},
            Gate(name="random", share=0.2, seed=5, of_run=True),
        ),
        ({"distill": {"gate": "random", "threshold": None, "reject_fraction": 2, "seed": 5}}, Gate()),
        (
            {"distill": {"gate": "confidence", "min_confidence": 0.25}},
            Gate(name="confidence", min_confidence=0.25, of_run=True),
        ),
        ({"distill": {"gate": "keys"}}, Gate()),
        (
            {"distill": {"gate": "soft", "threshold": None, "gate_targets": ["valence"]}},
            Gate(name="soft", targets=("valence",), of_run=True),
        ),
        ({"distill": None}, Gate()),
        ({}, Gate()),
        ({"distill": {"gate": "any-dimension", "threshold": float("nan")}}, Gate()),
        ({"distill": {"gate": "another", "threshold": 1.0}}, Gate()),
        ({"distill": [1]}, Gate()),
    ],
)  # fmt: skip
def test_gate_of_a_model_is_that_of_its_folder_or_the_default(extra: dict, gate: Gate):
    assert gate_from(extra) == gate


def test_random_gate_of_a_model_decides_by_the_keys_of_the_split(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    gate = Gate(name="random", share=0.5, seed=3, of_run=True)
    found = with_teacher(table_of(shard_set, ("valence",)), cache, shard_set, "Train", gate=gate)
    assert found.teacher is not None
    assert found.teacher.gate_mask.tolist() == [uniform(3, key) >= 0.5 for key in found.keys]
    assert 0 < found.teacher.gate_mask.sum() < len(found)
    assert gate.in_words() == "random, 0.5 rejected"
    write_table(tmp_path / "t.parquet", found)
    read = read_table(tmp_path / "t.parquet").teacher
    assert read is not None
    assert read.gate == gate


def test_gate_on_one_target_and_a_robust_fit_hold_for_the_cache_they_were_made_of(shard_set: ShardSet, tmp_path: Path):
    cache = example_cache(tmp_path / "cache", shard_set)
    table = table_of(shard_set, ("valence", "activation"))
    fit = {"w": [1.0, 0.5, 2.0], "b": [0.0, 0.25, -0.5], "residual_std": [0.1, 0.02, 0.3]}
    gate = Gate(threshold=8.0, targets=("valence",), fit=fit, fit_of=cache.digest, of_run=True)
    own = with_teacher(table, cache, shard_set, "Train", gate=gate).teacher
    other = with_teacher(table, cache, shard_set, "Train", gate=replace(gate, fit_of="another")).teacher
    assert own is not None
    assert other is not None
    assert own.widest == pytest.approx((0.16, np.nan), nan_ok=True)
    assert other.widest == pytest.approx((1.6, np.nan), nan_ok=True)
    for found in (own, other):
        within = np.nan_to_num(np.abs(found.residual[:, 0])) <= found.widest[0]
        np.testing.assert_array_equal(found.gate_mask, within)
    assert own.gate.in_words() == "any-dimension at 8 robust standard deviations of valence"
    assert other.gate.in_words() == "any-dimension at 8 standard deviations of valence"
