"""The teacher's pass in one process, on a real shard set with a real model."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, ShardError, TeacherError
from ccts_dist.loader.decode import read_audio, read_transcript
from ccts_dist.losses.gate import condition_sums, fit_condition
from ccts_dist.model import load_model
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.shards.teacher_cache import open_teacher_cache
from ccts_dist.shards.teacher_cache_writer import write_cache_shard
from ccts_dist.teacher import CacheSummary, cache_teacher
from ccts_dist.teacher.ensemble import load_ensemble
from ccts_dist.teacher.fit import read_shard_fit
from ccts_dist.teacher.forward import cut_by_seconds, teacher_outputs
from tests.helpers.models.small_teacher import build_small_shards, cache_bytes, save_small_teacher

SPLITS = {"Train": 21, "More": 6, "Development": 7}


@dataclass(frozen=True)
class Material:
    shard_set: ShardSet
    teacher: Path
    cache: Path
    summary: CacheSummary


def run_pass(teacher: Path, shard_set: ShardSet, out: Path, **settings) -> CacheSummary:
    settings = {"ranks": Ranks(), "device": torch.device("cpu"), "batch_seconds": 1.0} | settings
    return cache_teacher([teacher], shard_set, out, **settings)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("teacher")
    shard_set = build_small_shards(folder / "corpus", SPLITS)
    teacher = save_small_teacher(folder / "teacher")
    summary = run_pass(teacher, shard_set, folder / "cache", name="models:/teacher@a", registry_version="teacher/3")
    return Material(shard_set, teacher, folder / "cache", summary)


def copied_cache(material: Material, tmp_path: Path) -> Path:
    """The cache of ``material``, to be damaged."""
    out = tmp_path / "cache"
    for path in sorted(material.cache.rglob("*")):
        place = out / path.relative_to(material.cache)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return out


def test_every_utterance_is_cached_as_the_teacher_states_it_alone(material: Material):
    shard_set, cache = material.shard_set, open_teacher_cache(material.cache, material.shard_set)
    loaded = load_model(material.teacher)
    assert loaded.tokenizer is not None
    seen = 0
    for shard in shard_set.manifest.shards:
        rows = shard_set.rows(shard.name)
        for number, key in enumerate(rows.keys):
            audio = np.zeros(rows.num_samples[number], np.float32)
            read_audio(shard_set, rows, number, audio)
            tokens = torch.tensor([loaded.tokenizer.encode(read_transcript(shard_set, rows, number))])
            with torch.inference_mode():
                alone = loaded.model(
                    torch.from_numpy(audio)[None], torch.tensor([len(audio)]), tokens, torch.tensor([tokens.shape[1]])
                )
            cached = cache.read(shard.name, number, key)
            np.testing.assert_allclose(cached.embedding, alone.embedding[0], atol=1e-5)
            np.testing.assert_allclose(cached.prediction, alone.prediction[0], atol=1e-5)
            seen += 1
    assert seen == material.summary.num_utterances == sum(SPLITS.values())


def outputs_and_labels(material: Material, splits: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cache = open_teacher_cache(material.cache, material.shard_set)
    embedding, prediction, label = [], [], []
    for shard in material.shard_set.shards_of(splits):
        rows = material.shard_set.rows(shard.name)
        outputs = [cache.read(shard.name, row, key) for row, key in enumerate(rows.keys)]
        embedding += [output.embedding for output in outputs]
        prediction += [output.prediction for output in outputs]
        label.append(np.stack([rows.labels[name] for name in DIMENSIONS], 1))
    return np.array(embedding, np.float64), np.array(prediction), np.concatenate(label)


def test_condition_and_embedding_statistics_come_from_the_teachers_training_splits_only(material: Material):
    cache = open_teacher_cache(material.cache, material.shard_set)
    embedding, prediction, label = outputs_and_labels(material, ("Train",))
    sums = condition_sums(torch.from_numpy(prediction), torch.from_numpy(label))
    expected = fit_condition(sums, DIMENSIONS, ("Train",))
    assert cache.condition.splits == ("Train",)
    assert cache.condition.num_rows == expected.num_rows == (21, 18, 21)
    for field in ("w", "b", "residual_std"):
        assert getattr(cache.condition, field) == pytest.approx(getattr(expected, field), abs=1e-9)
    np.testing.assert_allclose(cache.embedding_mean, embedding.mean(0), atol=1e-12)
    np.testing.assert_allclose(cache.embedding_std, embedding.std(0), atol=1e-12)


def test_summary_reports_the_share_that_the_gate_leaves_out(material: Material):
    condition = material.summary.condition
    _, prediction, label = outputs_and_labels(material, ("Train",))
    residual = np.array(condition.w) * prediction + np.array(condition.b) - label
    out = (np.abs(residual) > 2 * np.array(condition.residual_std)).any(1)
    assert material.summary.num_fit_rows == 21
    assert material.summary.rejected_fraction == pytest.approx(out.mean())
    assert f"rejects {out.mean():.1%} of the 21 of Train" in material.summary.words()


def test_manifest_states_which_teacher_spoke(material: Material):
    facts = open_teacher_cache(material.cache, material.shard_set).facts
    assert (facts.name, facts.registry_version) == ("models:/teacher@a", "teacher/3")
    assert facts.weight_digest == load_model(material.teacher).digest
    assert facts.targets == DIMENSIONS
    assert facts.embedding_size == 8


def test_teacher_without_a_text_branch_is_cached(material: Material, tmp_path: Path):
    teacher = save_small_teacher(tmp_path / "deaf", with_text=False)
    run_pass(teacher, material.shard_set, tmp_path / "cache")
    shard = material.shard_set.manifest.shards[0].name
    key = material.shard_set.rows(shard).keys[0]
    assert open_teacher_cache(tmp_path / "cache", material.shard_set).read(shard, 0, key).embedding.shape == (8,)


def test_pass_over_a_finished_cache_keeps_everything(material: Material, tmp_path: Path):
    out = copied_cache(material, tmp_path)
    again = run_pass(material.teacher, material.shard_set, out, name="models:/teacher@a", registry_version="teacher/3")
    assert again.num_shards_reused == again.num_shards == material.summary.num_shards
    assert again.digest == material.summary.digest
    assert cache_bytes(out) == cache_bytes(material.cache)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_pass_does_again_only_the_shards_that_are_missing_or_damaged(material: Material, tmp_path: Path, damage: str):
    out = copied_cache(material, tmp_path)
    (out / "manifest.json").unlink()
    victim, other = (out / shard.name for shard in material.shard_set.manifest.shards[:2])
    victim.unlink() if damage == "gone" else victim.write_bytes(victim.read_bytes()[:-512])
    before = other.stat().st_mtime_ns
    again = run_pass(material.teacher, material.shard_set, out, name="models:/teacher@a", registry_version="teacher/3")
    assert again.num_shards_reused == again.num_shards - 1
    assert other.stat().st_mtime_ns == before
    assert cache_bytes(out) == cache_bytes(material.cache)


def test_chosen_splits_are_cached_and_no_others(material: Material, tmp_path: Path):
    summary = run_pass(material.teacher, material.shard_set, tmp_path / "cache", splits=("Train",))
    assert summary.num_utterances == SPLITS["Train"]
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").glob("*.tar")} == {"Train"}


def test_grown_shard_set_keeps_the_shards_it_had(material: Material, tmp_path: Path):
    out = copied_cache(material, tmp_path)
    grown = build_small_shards(tmp_path / "corpus", SPLITS | {"Test1": 5})
    summary = run_pass(material.teacher, grown, out)
    assert summary.num_shards_reused == material.summary.num_shards
    assert summary.num_utterances == sum(SPLITS.values()) + 5
    open_teacher_cache(out, grown)


def test_cache_of_another_shard_set_is_refused_with_both_digests(material: Material, tmp_path: Path):
    other = build_small_shards(tmp_path / "corpus", SPLITS, seed=1)
    ours, theirs = material.shard_set.manifest.shards, {shard.name: shard for shard in other.manifest.shards}
    first = min(ours, key=lambda shard: shard.name)
    with pytest.raises(TeacherError, match=f"{first.sha256[:12]}.*{theirs[first.name].sha256[:12]}"):
        run_pass(material.teacher, other, material.cache)
    with pytest.raises(TeacherError, match=f"{material.shard_set.digest[:12]}.*{other.digest[:12]}"):
        open_teacher_cache(material.cache, other)


def test_cache_of_shards_with_other_names_is_refused(material: Material, tmp_path: Path):
    other = build_small_shards(tmp_path / "corpus", {"Test3": 3})
    teacher = save_small_teacher(tmp_path / "teacher", train_splits=["Test3"])
    with pytest.raises(TeacherError, match=r"its [\w-]+\.tar comes from .* that shard does not exist"):
        run_pass(teacher, other, material.cache)


def test_cache_of_another_teacher_is_refused_with_both_digests(material: Material, tmp_path: Path):
    other = save_small_teacher(tmp_path / "teacher", seed=1)
    digests = load_model(material.teacher).digest[:12], load_model(other).digest[:12]
    with pytest.raises(TeacherError, match=f"{digests[0]}.*{digests[1]}"):
        run_pass(other, material.shard_set, material.cache)


def test_fit_split_that_the_teacher_was_not_trained_on_is_refused(material: Material, tmp_path: Path):
    with pytest.raises(TeacherError, match=r"Fit split 'Development' is not one that .* trained on \('Train'\)"):
        run_pass(material.teacher, material.shard_set, tmp_path, fit_splits=("Train", "Development"))


def test_some_of_the_training_splits_can_be_fitted_on(material: Material, tmp_path: Path):
    teacher = save_small_teacher(tmp_path / "teacher", train_splits=["Train", "More"])
    assert run_pass(teacher, material.shard_set, tmp_path / "a").condition.splits == ("Train", "More")
    few = run_pass(teacher, material.shard_set, tmp_path / "b", fit_splits=("More",))
    assert few.condition.splits == ("More",)
    assert few.num_fit_rows == 6


def test_fit_split_that_is_not_cached_is_refused(material: Material, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"Fit split 'Train' is not among the splits to cache \(More\)"):
        run_pass(material.teacher, material.shard_set, tmp_path, splits=("More",))


def test_training_split_that_the_shards_lack_is_refused(material: Material, tmp_path: Path):
    teacher = save_small_teacher(tmp_path / "teacher", train_splits=["Session1"])
    with pytest.raises(ConfigError, match="no split 'Session1'"):
        run_pass(teacher, material.shard_set, tmp_path / "cache", splits=("Session1",))


def test_teacher_that_names_no_training_splits_is_refused(material: Material, tmp_path: Path):
    teacher = save_small_teacher(tmp_path / "teacher", train_splits=[])
    with pytest.raises(TeacherError, match="names no train_splits"):
        run_pass(teacher, material.shard_set, tmp_path / "cache")


def test_teacher_of_targets_that_the_shards_lack_is_refused(material: Material, tmp_path: Path):
    shard_set = open_shard_set(material.shard_set.root)
    object.__setattr__(shard_set.manifest, "targets", ("activation", "dominance"))
    with pytest.raises(TeacherError, match=r"predicts 'valence', which is no label of .* \(activation, dominance\)"):
        run_pass(material.teacher, shard_set, tmp_path / "cache")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_batch_of_no_seconds_is_refused(material: Material, tmp_path: Path, seconds: float):
    with pytest.raises(ConfigError, match=r"--batch-seconds=.* must be above 0"):
        run_pass(material.teacher, material.shard_set, tmp_path / "cache", batch_seconds=seconds)


def test_teacher_whose_outputs_are_not_finite_is_refused_and_names_shard_and_key(material: Material, tmp_path: Path):
    teacher = save_small_teacher(tmp_path / "teacher", weights={"prediction.bias": float("nan")})
    with pytest.raises(TeacherError, match=r"\.tar: the teacher's output for '\w+\.\d+' is not finite"):
        run_pass(teacher, material.shard_set, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_damaged_source_shard_ends_the_pass_and_names_shard_and_key(material: Material, tmp_path: Path):
    shard_set = build_small_shards(tmp_path / "corpus", SPLITS)
    shard = shard_set.manifest.shards[1].name
    place = int(shard_set.rows(shard).members["flac"].offset[0]) + 60
    with open(shard_set.path(shard), "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ShardError, match=f"{shard}: flac of '{shard_set.rows(shard).keys[0]}' is damaged"):
        run_pass(material.teacher, shard_set, tmp_path / "cache")
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_second_pass_in_one_folder_is_refused(material: Material, tmp_path: Path):
    with open(tmp_path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TeacherError, match="another pass is at work here"):
            run_pass(material.teacher, material.shard_set, tmp_path)


def test_folder_that_cannot_be_made_is_refused(material: Material, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TeacherError, match=r"file/cache: cannot be written \(Not a directory\)"):
        run_pass(material.teacher, material.shard_set, tmp_path / "file" / "cache")


def test_shard_that_cannot_be_written_is_reported_and_what_is_finished_is_kept(material: Material, tmp_path: Path):
    shards = sorted(material.shard_set.manifest.shards, key=lambda shard: (-shard.num_samples, shard.name))
    (tmp_path / shards[1].name).mkdir()  # a folder in the place of the second shard that is written
    with pytest.raises(TeacherError, match=rf"{shards[1].name}: cannot be written \(Is a directory\)"):
        run_pass(material.teacher, material.shard_set, tmp_path)
    os.rmdir(tmp_path / shards[1].name)
    assert run_pass(material.teacher, material.shard_set, tmp_path).num_shards_reused == 1


def test_batch_that_does_not_fit_the_device_is_reported_with_what_to_lower(material: Material):
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    teacher = load_ensemble([material.teacher], torch.device("cpu"))
    teacher.members[0].model.register_forward_pre_hook(out_of_memory)
    rows = material.shard_set.rows(material.shard_set.manifest.shards[0].name)
    with pytest.raises(TeacherError, match=rf"{rows.shard}: .* do not fit .* Lower --batch-seconds, now 1\."):
        teacher_outputs(
            teacher,
            material.shard_set,
            rows,
            device=torch.device("cpu"),
            batch_seconds=1.0,
            advance=lambda _: None,
        )


def test_cached_shard_with_other_keys_than_its_source_is_not_fitted_on(material: Material, tmp_path: Path):
    shard = material.shard_set.shards_of(["Train"])[0]
    first, *rest = material.shard_set.rows(shard.name).keys
    cache = open_teacher_cache(material.cache, material.shard_set)
    numbers = {key: row for row, key in enumerate((first, *rest))}
    rows = [(key, cache.read(shard.name, numbers[key], key)) for key in (*rest, first)]
    write_cache_shard(tmp_path, shard.name, shard.sha256, rows, teacher_digest=cache.facts.weight_digest)
    with pytest.raises(TeacherError, match=f"{shard.name}: its keys are not the source shard's"):
        read_shard_fit(tmp_path, material.shard_set, shard.name, targets=DIMENSIONS, embedding_size=8)


@given(lengths=st.lists(st.integers(1, 64_000), max_size=30), seconds=st.floats(0.1, 8.0))
def test_batches_hold_every_utterance_once_and_not_more_padded_audio_than_allowed(lengths: list[int], seconds: float):
    batches = cut_by_seconds(lengths, seconds)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[place] for place in batch)
        assert len(batch) == 1 or padded <= seconds * 16_000
