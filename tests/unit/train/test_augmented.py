"""Windows, noise, rooms, speed and masks in whole trainings: the same however a batch is cut and after a resume."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.config import read_run
from ccts_dist.distributed import Ranks
from ccts_dist.errors import CheckpointError, ConfigError
from ccts_dist.train.experiment import open_experiment
from ccts_dist.train.inputs import loaders as inputs
from ccts_dist.train.run_folder import RunFolder
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.small_runs import SPEECH, build_two_kinds, make_cache, read_history, write_run

CHANGES: dict[str, dict] = {
    "clean": {},
    "cap": {"data": {"max_duration_s": 0.2}},
    "noise": {"augment": {"noises": ["{place}/noises", "pink", "babble"], "snr_db": [0, 10]}},
    "rooms": {"augment": {"impulse_responses": ["{place}/rooms"]}},
    "speed": {"augment": {"speed": [0.9, 1.1]}},
    "masks": {"model": {"speech": {**SPEECH, "spec_augment": {"mask_time_prob": 0.5, "mask_time_length": 2}}}},
}
ALL = {name: {**values} for change in CHANGES.values() for name, values in change.items() if name != "augment"} | {
    "augment": {key: value for change in CHANGES.values() for key, value in change.get("augment", {}).items()}
}


def config_for(place: Path, name: str, changes: dict[str, dict], **sections: dict) -> Path:
    here = json.loads(json.dumps(changes).replace("{place}", str(place)))
    for section, values in sections.items():
        here[section] = here.get(section, {}) | values
    here["data"] = {"teacher_cache": str(place / "cache"), "num_workers": 1} | here.get("data", {})
    return write_run(
        place / f"{name}.toml", place / "shards", place / "runs" / name, distill={"embedding_weight": 0.1}, **here
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Everything at once, whole and resumed; and all but the masks, in four micro-batches a step and in one."""
    place = tmp_path_factory.mktemp("augmented")
    make_cache(save_small_teacher(place / "teacher"), build_two_kinds(place), place / "cache")
    draws = np.random.default_rng(3)
    for name, rate, samples in (("noises/rain.wav", 8_000, 20_000), ("noises/wind.flac", 44_100, 3_000)):
        (place / name).parent.mkdir(exist_ok=True)
        soundfile.write(place / name, 0.1 * draws.standard_normal(samples), rate)
    (place / "rooms").mkdir()
    soundfile.write(place / "rooms" / "hall.wav", np.exp(-np.arange(800) / 100) * draws.standard_normal(800), 16_000)
    same = {name: values for name, values in ALL.items() if name != "model"}
    for micro in (4, 16):
        train_plainly(config_for(place, f"by-{micro}", same, train={"max_steps": 9}, batch={"micro_batch_size": micro}))
    train = {"max_steps": 9, "save_steps": 6, "save_total_limit": 9}
    whole = train_plainly(config_for(place, "whole", ALL, train=train))
    train_plainly(
        config_for(place, "resumed", ALL, train=train), resume="auto", continues=whole / "checkpoints" / "step-00000006"
    )
    return place


@pytest.mark.integration
def test_losses_agree_however_a_batch_is_cut(place):
    one, two = (read_history(place / "runs" / f"by-{micro}") for micro in (4, 16))
    assert [step["keys"] for step in one] == [step["keys"] for step in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)


def test_a_resumed_run_reads_what_the_undisturbed_one_does(place):
    whole, resumed = place / "runs" / "whole", place / "runs" / "resumed"
    assert read_history(resumed) == read_history(whole)
    assert (resumed / "last/model.safetensors").read_bytes() == (whole / "last/model.safetensors").read_bytes()


def test_sounds_that_have_changed_are_noticed_on_resuming(place):
    soundfile.write(place / "noises" / "more.wav", np.ones(500), 16_000)
    run = read_run(config_for(place, "resumed", ALL))
    experiment = open_experiment(run, Ranks())
    experiment.close()
    (place / "noises" / "more.wav").unlink()
    with (
        RunFolder(run, Ranks(), resume=True) as folder,
        pytest.raises(CheckpointError, match=r"was trained on plan .* and the sounds of"),
    ):
        folder.find_resume_point("auto", run, experiment.plan_digest, print)


def test_ranks_that_see_other_sounds_are_refused(place, monkeypatch):
    monkeypatch.setattr(inputs, "gather_objects", lambda digest: [digest, "another rank's"])
    with pytest.raises(ConfigError, match="ranks do not see the same files"):
        open_experiment(read_run(config_for(place, "own", CHANGES["noise"])), Ranks())
    open_experiment(read_run(config_for(place, "own", CHANGES["clean"])), Ranks()).close()


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in ("clean", "masks")])
def test_each_change_is_of_the_training_audio_and_of_nothing_else(place, change):
    experiments = [
        open_experiment(read_run(config_for(place, f"look-{name}", CHANGES[name])), Ranks())
        for name in ("clean", change)
    ]
    clean, changed = experiments
    own, others = ([batch for step in s.loader.epoch(0) for batch in step.micro_batches] for s in experiments)
    audio = [
        {key: batch.audio[row, : batch.num_samples[row]] for batch in side for row, key in enumerate(batch.keys)}
        for side in (own, others)
    ]
    teacher = [
        {key: batch.teacher.embedding[row].tolist() for batch in side for row, key in enumerate(batch.keys)}
        for side in (own, others)
    ]
    different = [
        key
        for key, wave in audio[0].items()
        if wave.shape != audio[1][key].shape or not np.array_equal(wave, audio[1][key])
    ]
    assert len(different) > (10 if change == "cap" else 60)
    assert teacher[0] == teacher[1]
    for loaders in ([s.valid_loader for s in experiments], [s.test_loader("Test1") for s in experiments]):
        for ours, theirs in zip(loaders[0].epoch(0), loaders[1].epoch(0), strict=True):
            for a, b in zip(ours.micro_batches, theirs.micro_batches, strict=True):
                assert a.keys == b.keys
                assert np.array_equal(a.audio, b.audio)
    assert clean.plan_digest == clean.loader.plan.digest
    assert (changed.plan_digest != changed.loader.plan.digest) == (change in ("noise", "rooms"))
    for experiment in experiments:
        experiment.close()
