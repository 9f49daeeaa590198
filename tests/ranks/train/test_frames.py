"""Frames of frozen encoders kept once: the same training as without, on any ranks, over epochs and after a resume."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.train.experiment import open_experiment
from tests.helpers.faults.damage import flip, flip_in_member
from tests.helpers.processes.launching import ROOT
from tests.helpers.processes.small_runs import SPEECH, build_two_kinds, read_history, read_validations, write_run
from tests.helpers.ranks.processes import run_on_ranks
from tests.helpers.ranks.trainings import Job, run_trainings

pytestmark = pytest.mark.long

FROZEN = {"trainable": "none", "train_feature_encoder": False, "pooling": "gru", "gru_hidden": 6}
TEXT = {
    "encoder": "scratch", "vocab_size": 60, "trainable": "none", "pooling": "mean", "max_tokens": 16,
    "scratch": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 32, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}  # fmt: skip
MODEL = {"speech": {**SPEECH, **FROZEN}, "text": TEXT}
RUNS = {"without": (1, "", "zero0"), "one rank": (1, "frames", "zero0"), "two ranks": (2, "frames-of-two", "zero3")}


def write(place: Path, name: str, frames: str, stage: str = "zero0", **sections) -> Path:
    merged = {"data": {"feature_cache": frames and str(place / frames)}, "model": MODEL,
        "optim": {"learning_rate": 0.1},
              "train": {"epochs": 3, "deepspeed": str(ROOT / "ds_configs" / f"{stage}.json")}}  # fmt: skip
    for section, values in sections.items():
        merged[section] = {**merged[section], **values}
    return write_run(place / f"{name}.toml", place / "shards", place / "runs" / name, **merged)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("frames")
    build_two_kinds(place)
    return place


@pytest.fixture(scope="module")
def outputs(place: Path) -> dict[str, Path]:
    jobs: dict[int, list[Job]] = {1: [], 2: []}
    for name, (num_ranks, frames, stage) in RUNS.items():
        jobs[num_ranks].append(Job(config=write(place, name, frames, stage)))
    # Stopped within the second epoch, and resumed from what was kept.
    jobs[1].append(Job(config=write(place, "resumed", "frames", train={"max_steps": 6})))
    for num_ranks, of_these in jobs.items():
        run_on_ranks(run_trainings, num_ranks, of_these, timeout_s=600)
    config = write(place, "resumed", "frames", train={"max_steps": 50})
    run_on_ranks(run_trainings, 1, [Job(config=config, resume="auto")], timeout_s=600)
    return {name: place / "runs" / name for name in (*RUNS, "resumed")}


def test_training_is_the_same_as_if_the_encoders_had_run(outputs):
    losses = {name: [step["train/loss"] for step in read_history(output)] for name, output in outputs.items()}
    plain = losses["without"]
    assert len(plain) == 12
    assert np.ptp(plain) > 0.01, "nothing was learnt, so nothing was compared"
    for name, others in losses.items():
        np.testing.assert_allclose(others, plain, atol=1e-5, err_msg=name)
    weights = {name: load_file(output / "last" / "model.safetensors") for name, output in outputs.items()}
    for name, others in weights.items():
        assert max(np.abs(others[key] - weights["without"][key]).max() for key in others) <= 1e-5, name


def test_validations_and_tests_are_too(outputs):
    plain = read_validations(outputs["without"])
    for name in ("one rank", "two ranks"):
        for ours, theirs in zip(read_validations(outputs[name]), plain, strict=True):
            assert ours["valid/loss"] == pytest.approx(theirs["valid/loss"], abs=1e-5)
    tested = [json.loads((outputs[name] / "summary.json").read_text())["test"] for name in RUNS]
    assert tested[1] == pytest.approx(tested[0], abs=1e-5)
    assert tested[2] == pytest.approx(tested[0], abs=1e-5)


def test_kept_frames_are_those_of_one_rank_and_of_two(place: Path, outputs):
    names = [sorted(path.relative_to(place / kept) for path in (place / kept).rglob("*.npy"))
             for kept in ("frames", "frames-of-two")]  # fmt: skip
    assert names[0] == names[1]
    assert len({path.parts[0] for path in names[0]}) == 2, "one folder for each encoder"
    for name in names[0]:
        one, two = (np.load(place / kept / name) for kept in ("frames", "frames-of-two"))
        if name.name.endswith(".frames.npy"):
            np.testing.assert_allclose(one, two, atol=1e-6)


def test_second_run_makes_nothing_and_decodes_nothing(place: Path, outputs):
    run = read_run(write(place, "again", "frames"))
    before = {path: path.stat().st_mtime_ns for path in (place / "frames").rglob("*.npy")}
    experiment = open_experiment(run, Ranks())
    try:
        batch = next(experiment.loader.epoch(0)).micro_batches[0]
    finally:
        experiment.close()
    assert {path: path.stat().st_mtime_ns for path in (place / "frames").rglob("*.npy")} == before
    assert set(batch.frames) == {"speech", "text"}
    assert batch.audio.shape[1] == 1
    assert batch.tokens is None
    assert 0 <= batch.padding < 1


def test_other_encoders_get_frames_of_their_own(place: Path, outputs):
    for change, num_folders in (("seed=4", 4), ("model.text.max_tokens=8", 5)):  # of speech and text, or of text alone
        experiment = open_experiment(read_run(write(place, "other", "frames"), [change]), Ranks())
        experiment.close()
        assert len(list((place / "frames").iterdir())) == num_folders


def test_damaged_frames_stop_the_run_or_give_the_row_weight_0(place: Path, outputs):
    run = read_run(write(place, "damaged", "frames-of-damaged"))
    open_experiment(run, Ranks()).close()
    for file in (place / "frames-of-damaged").rglob("Train-000000-*.frames.npy"):
        flip(file, file.stat().st_size - 3)
    experiment = open_experiment(run, Ranks())
    with pytest.raises(ShardError, match=r"frames of '.*' are damaged"):
        list(experiment.loader.epoch(0))
    experiment.close()
    experiment = open_experiment(read_run(place / "damaged.toml", ["data.on_corrupt=skip"]), Ranks())
    batches = [batch for step in experiment.loader.epoch(0) for batch in step.micro_batches]
    experiment.close()
    assert sum(float((batch.weight == 0).sum()) for batch in batches) in (1, 2)  # one of each encoder, perhaps the same


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"speech": SPEECH, "text": {**TEXT, "trainable": "all"}}}, "there are none to keep"),
        ({"model": {"speech": {**SPEECH, **FROZEN, "layers": "weighted"}, "text": {**TEXT, "trainable": "all"}}},
         "there are none to keep"),
        ({"data": {"max_duration_s": 0.2}}, "data.max_duration_s makes each epoch read something else"),
    ],
)  # fmt: skip
def test_run_without_frames_to_keep_is_refused(place: Path, sections, words: str):
    with pytest.raises(ConfigError, match=words):
        read_run(write(place, "refused", "frames", **sections))


def test_augmented_run_is_refused(place: Path):
    config = write(place, "augmented", "frames")
    with pytest.raises(ConfigError, match=r"\[augment\] makes each epoch read something else"):
        read_run(config, ['augment.noises=["white"]'])


def test_damaged_utterance_stops_the_making_or_has_no_frames(tmp_path: Path):
    shard_set = build_two_kinds(tmp_path)
    name = shard_set.shards_of(("Train",))[0].name
    flip_in_member(Path(shard_set.root), name, 2, "flac")
    config = write(tmp_path, "stop", "frames")
    with pytest.raises(ShardError, match="is damaged"):
        open_experiment(read_run(config), Ranks())
    experiment = open_experiment(read_run(config, ["data.on_corrupt=skip"]), Ranks())
    batches = [batch for step in experiment.loader.epoch(0) for batch in step.micro_batches]
    experiment.close()
    rejected = [key for batch in batches for key, w in zip(batch.keys, batch.weight.tolist(), strict=True) if w == 0]
    assert rejected == [shard_set.rows(name).keys[2]]


def test_words_that_are_kept_do_not_mind_changed_audio(tmp_path: Path):
    build_two_kinds(tmp_path, num_train=8)
    config = write(tmp_path, "words", "frames", model={"speech": SPEECH})
    run = read_run(config, ['augment.noises=["white"]'])
    experiment = open_experiment(run, Ranks())
    batch = next(experiment.loader.epoch(0)).micro_batches[0]
    experiment.close()
    assert set(batch.frames) == {"text"}
    assert batch.audio.shape[1] > 1
