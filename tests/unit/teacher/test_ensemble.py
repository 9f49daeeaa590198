"""Several teachers in one cache: their mean, the digest that names them, and what does not go together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ccts_dist.distributed import Ranks
from ccts_dist.errors import TeacherError
from ccts_dist.model import load_model
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache, open_teacher_cache
from ccts_dist.teacher import CacheSummary, cache_teacher
from ccts_dist.teacher.ensemble import load_ensemble
from ccts_dist.teacher.forward import teacher_outputs
from tests.helpers.models.small_teacher import build_small_shards, cache_bytes, save_small_teacher

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Material:
    folder: Path
    shard_set: ShardSet
    both: Path
    """Speech and text."""

    deaf: Path
    """Speech alone."""

    text: Path
    """Text alone, with a tokenizer of its own."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("ensemble")
    return Material(
        folder,
        build_small_shards(folder / "corpus", {"Train": 14, "Test1": 4}, shard_bytes=20_000),
        save_small_teacher(folder / "both"),
        save_small_teacher(folder / "deaf", seed=1, with_text=False),
        save_small_teacher(folder / "text", seed=2, with_speech=False, words=("soft", "sun", "sleet", "suns")),
    )


def run_pass(teachers: list[Path], shard_set: ShardSet, out: Path) -> CacheSummary:
    return cache_teacher(teachers, shard_set, out, ranks=Ranks(), device=CPU, batch_seconds=1.0, name="for people")


def outputs(cache: TeacherCache, shard_set: ShardSet) -> np.ndarray:
    """Embedding and predictions of all utterances."""
    rows = [shard_set.rows(shard.name) for shard in shard_set.manifest.shards]
    read = [cache.read(one.shard, row, key) for one in rows for row, key in enumerate(one.keys)]
    return np.array([np.concatenate([output.embedding, output.prediction]) for output in read], np.float64)


def test_outputs_are_the_mean_by_hand(material: Material, tmp_path: Path):
    still = {"embedding.weight": 0.0, "prediction.weight": 0.0}
    quarter = save_small_teacher(tmp_path / "a", weights=still | {"embedding.bias": 0.25, "prediction.bias": 0.5})
    other = save_small_teacher(tmp_path / "b", weights=still | {"embedding.bias": 1.0, "prediction.bias": -0.25})
    rows = material.shard_set.rows(material.shard_set.manifest.shards[0].name)
    for folders, embedding, prediction in (
        ([quarter, other], 0.625, 0.125),
        ([quarter, other, quarter], 0.5, 0.25),  # one that is named twice counts twice
    ):
        teacher = load_ensemble(folders, CPU)
        found = teacher_outputs(
            teacher, material.shard_set, rows, device=CPU, batch_seconds=1.0, advance=lambda _: None
        )
        assert len(found) == len(rows)
        for output in found:
            np.testing.assert_allclose(output.embedding, [embedding] * 8, atol=1e-7)
            np.testing.assert_allclose(output.prediction, [prediction] * 3, atol=1e-7)


def test_teachers_of_different_modalities_and_tokenizers_are_averaged_and_the_condition_fits_the_mean(
    material: Material, tmp_path: Path
):
    teachers = [material.both, material.deaf, material.text]
    alone = []
    for teacher in teachers:
        run_pass([teacher], material.shard_set, tmp_path / teacher.name)
        alone.append(outputs(open_teacher_cache(tmp_path / teacher.name, material.shard_set), material.shard_set))
    run_pass(teachers, material.shard_set, tmp_path / "mean")
    cache = open_teacher_cache(tmp_path / "mean", material.shard_set)
    mean = outputs(cache, material.shard_set)
    np.testing.assert_allclose(mean, np.mean(alone, 0), atol=1e-6)
    assert all(np.abs(mean - one).max() > 1e-3 for one in alone), "the teachers state the same: nothing was averaged"

    train = mean[: material.shard_set.manifest.splits["Train"].num_utterances]
    rows = [material.shard_set.rows(shard.name) for shard in material.shard_set.shards_of(["Train"])]
    label = np.concatenate([one.labels["activation"] for one in rows])
    slope, intercept = np.polyfit(train[:, 8], label, 1)
    assert (cache.condition.w[0], cache.condition.b[0]) == pytest.approx((slope, intercept), rel=1e-5)
    np.testing.assert_allclose(cache.embedding_mean, train[:, :8].mean(0), atol=1e-6)


def test_one_teacher_twice_is_that_teacher(material: Material, tmp_path: Path):
    caches = []
    for name, teachers in (("once", [material.both]), ("twice", [material.both] * 2)):
        run_pass(teachers, material.shard_set, tmp_path / name)
        caches.append(open_teacher_cache(tmp_path / name, material.shard_set))
    once, twice = caches
    np.testing.assert_allclose(outputs(twice, material.shard_set), outputs(once, material.shard_set), atol=1e-6)
    for field in ("w", "b", "residual_std"):
        assert getattr(twice.condition, field) == pytest.approx(getattr(once.condition, field), abs=1e-6)
    assert once.facts.weight_digest == load_model(material.both).digest
    assert twice.facts.weight_digest != once.facts.weight_digest


def test_digest_names_each_teacher_in_any_order(material: Material, tmp_path: Path):
    other = save_small_teacher(tmp_path / "other", seed=3)

    def digest(*folders: Path) -> str:
        return load_ensemble(folders, CPU).digest

    assert digest(material.both, material.deaf) == digest(material.deaf, material.both)
    sets = [(material.both, material.deaf), (other, material.deaf), (material.both, other), (material.both,)]
    assert len({digest(*one) for one in sets}) == len(sets)


def test_stopped_pass_goes_on_with_the_same_teachers_in_any_order_and_with_no_other(material: Material, tmp_path: Path):
    out, other = tmp_path / "cache", save_small_teacher(tmp_path / "other", seed=3)
    run_pass([material.both, material.deaf], material.shard_set, out)
    whole = cache_bytes(out)
    (out / "manifest.json").unlink()
    (out / material.shard_set.manifest.shards[0].name).unlink()
    named = (load_ensemble([material.both, one], CPU).digest[:12] for one in (material.deaf, other))
    with pytest.raises(TeacherError, match="{}.*{}".format(*named)):
        run_pass([material.both, other], material.shard_set, out)
    with pytest.raises(TeacherError, match="holds outputs of teacher"):
        run_pass([material.both], material.shard_set, out)
    again = run_pass([material.deaf, material.both], material.shard_set, out)
    assert again.num_shards_reused == again.num_shards - 1
    assert cache_bytes(out) == whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding_dim": 6}, r"model\.embedding_dim = \d and \d: must be equal"),
        (
            {"targets": ("valence", "dominance")},
            r"model\.targets = \('.*'\) and \('.*'\): must be equal, in this order",
        ),
    ],
)
def test_teachers_without_a_mean_are_refused_by_both_names(
    material: Material, tmp_path: Path, changes: dict[str, object], words: str
):
    other = save_small_teacher(tmp_path / "other", with_text=False, changes=changes)
    with pytest.raises(TeacherError, match=words) as refused:
        run_pass([material.both, other], material.shard_set, tmp_path / "cache")
    assert refused.value.exit_code == 2
    assert str(material.both) in str(refused.value)
    assert str(other) in str(refused.value)


def test_condition_is_fitted_on_splits_that_every_teacher_was_trained_on(material: Material, tmp_path: Path):
    more = save_small_teacher(tmp_path / "more", seed=4, train_splits=["Test1", "Train"])
    summary = run_pass([more, material.deaf], material.shard_set, tmp_path / "cache")
    assert summary.condition.splits == ("Train",)
    apart = save_small_teacher(tmp_path / "apart", seed=5, train_splits=["Test1"])
    with pytest.raises(TeacherError, match="of these names no train_splits in common"):
        run_pass([apart, material.deaf], material.shard_set, tmp_path / "none")


def test_teacher_that_diverged_is_named(material: Material, tmp_path: Path):
    lost = save_small_teacher(tmp_path / "lost", weights={"prediction.bias": float("nan")})
    with pytest.raises(TeacherError, match=rf"is not finite\. The teacher {lost} has diverged"):
        run_pass([material.both, lost, material.deaf], material.shard_set, tmp_path / "cache")
