"""A run's folder is only for the run that it is of, and resuming changes nothing that counts."""

import dataclasses
import json

import pytest

from ccts_dist.config import RunConfig
from ccts_dist.errors import CheckpointError, ConfigError
from ccts_dist.train.checkpoints.checkpoint import (
    read_state,
)
from ccts_dist.train.run_folder import RunFolder, changed_keys
from tests.helpers.examples.checkpoints import ALONE, run_in, save


def test_folder_with_checkpoints_is_refused_without_resume(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="Add --resume auto"):
        RunFolder(run_in(tmp_path), ALONE, resume=False)


def test_folder_admits_one_job_at_a_time(tmp_path):
    with (
        RunFolder(run_in(tmp_path), ALONE, resume=False),
        pytest.raises(ConfigError, match="another job is training in it"),
    ):
        RunFolder(run_in(tmp_path), ALONE, resume=False)
    RunFolder(run_in(tmp_path), ALONE, resume=False).close()


def test_folder_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder(run_in(tmp_path / "file" / "run"), ALONE, resume=False)


@pytest.mark.parametrize(
    ("section", "value", "key"),
    [
        ("seed", 3, "seed"),
        ("batch", {"global_batch_size": 16}, "batch.global_batch_size"),
        ("optim", {"learning_rate": 1e-2}, "optim.learning_rate"),
        ("data", {"shards": "s", "train_splits": ["Other"]}, "data.train_splits"),
        ("train", {"precision": "bf16"}, "train.precision"),
        ("data", {"shards": "s", "max_duration_s": 12.0}, "data.max_duration_s"),
        ("augment", {"snr_db": [0, 5]}, "augment.noise_probability"),
    ],
)
def test_resuming_with_another_numerical_setting_is_refused(tmp_path, section, value, key):
    save(tmp_path, 1)
    with (
        RunFolder(run_in(tmp_path), ALONE, resume=True) as folder,
        pytest.raises(ConfigError, match=f"{key} = .* must not change"),
    ):
        folder.find_resume_point("auto", run_in(tmp_path, **{section: value}), "plan", print)


def test_resuming_names_every_harmless_change(tmp_path):
    save(tmp_path, 1)
    run = run_in(tmp_path, train={"epochs": 3}, data={"shards": "elsewhere", "num_workers": 0})
    received: list[str] = []
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run, "plan", received.append) is not None
    assert [line.split(": ")[1] for line in received] == ["data.num_workers", "data.shards", "train.epochs"]


def test_checkpoint_of_a_version_that_knew_fewer_keys_is_gone_on_from(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["run"]["optim"]["warmup_steps"], manifest["run"]["data"]["max_duration_s"]
    path.write_text(json.dumps(manifest))
    run, received = run_in(tmp_path), []
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run, "plan", received.append) is not None
    assert received == []


def test_sounds_may_have_moved_since_the_checkpoint(tmp_path):
    """What is in their folders is part of the plan's digest."""
    save(tmp_path, 1, run=run_in(tmp_path, augment={"noises": ["there"]}))
    run = run_in(tmp_path, augment={"noises": ["here"]})
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run, "plan", lambda _: None) is not None


def test_state_of_a_version_that_knew_fewer_fields_is_read(tmp_path):
    path = save(tmp_path, 4)
    state = json.loads((path / "state.json").read_text())
    del state["since_best"], state["validated_step"]
    (path / "state.json").write_text(json.dumps(state))
    assert read_state(path).step == 4


def test_resuming_on_another_plan_is_refused(tmp_path):
    save(tmp_path, 1)
    run = run_in(tmp_path)
    with (
        RunFolder(run, ALONE, resume=True) as folder,
        pytest.raises(CheckpointError, match="was trained on plan"),
    ):
        folder.find_resume_point("auto", run, "another plan", print)


def test_resuming_on_another_number_of_ranks_is_reported(tmp_path):
    path = save(tmp_path, 1)
    run, received = run_in(tmp_path), []
    with RunFolder(run, ALONE, resume=True) as folder:
        folder._ranks = dataclasses.replace(ALONE, num_ranks=3)
        assert folder._find("auto", run, "plan", received.append) == path
    assert received == ["changed since step-00000001: number of ranks: 1 -> 3"]


def test_checkpoint_of_a_version_with_fewer_settings_is_resumed_as_long_as_they_are_at_their_defaults(tmp_path):
    sections = {"data": {"shards": "s", "teacher_cache": "c"}, "distill": {}}
    run = run_in(tmp_path, **sections)
    path = save(tmp_path, 1, run=run)
    manifest = json.loads((path / "manifest.json").read_text())
    for key in ("reject_fraction", "prediction_loss"):
        del manifest["run"]["distill"][key]
    (path / "manifest.json").write_text(json.dumps(manifest))
    received: list[str] = []
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run, "plan", received.append) == path
        assert received == []
        other = run_in(tmp_path, **sections | {"distill": {"reject_fraction": 0.1}})
        with pytest.raises(
            ConfigError, match=r"distill.reject_fraction = 0\.1: was 0\.0 when step-00000001 was written"
        ):
            folder.find_resume_point("auto", other, "plan", received.append)


def with_threshold(run: RunConfig, threshold: float | None) -> RunConfig:
    assert run.distill is not None
    return dataclasses.replace(run, distill=dataclasses.replace(run.distill, threshold=threshold))


@pytest.mark.parametrize("then", [1.875, 1.875 * (1 + 1e-7), 2.0], ids=["same", "rounded otherwise", "earlier version"])
def test_run_with_a_share_to_leave_out_goes_on_with_the_threshold_that_it_found(tmp_path, then: float):
    """Earlier versions recorded 2.0, whatever they had found."""
    asked = run_in(tmp_path, data={"shards": "s", "teacher_cache": "c"}, distill={"reject_fraction": 0.1})
    path, received = save(tmp_path, 1, run=with_threshold(asked, then)), []
    now = with_threshold(asked, 1.875)
    with RunFolder(now, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", now, "plan", received.append) == path
        assert received == []


def test_run_whose_share_gives_another_threshold_than_before_is_not_resumed(tmp_path):
    asked = run_in(tmp_path, data={"shards": "s", "teacher_cache": "c"}, distill={"reject_fraction": 0.1})
    save(tmp_path, 1, run=with_threshold(asked, 1.875))
    now = with_threshold(asked, 1.9)
    with (
        RunFolder(now, ALONE, resume=True) as folder,
        pytest.raises(ConfigError, match=r"distill.threshold = 1\.9: was 1\.875 when step-00000001 was written"),
    ):
        folder.find_resume_point("auto", now, "plan", print)


def test_checkpoint_of_a_version_that_left_values_open_goes_on_with_the_same_values(tmp_path):
    path = save(tmp_path, 1, run=run_in(tmp_path, loss={"target_weights": []}))
    run, received = run_in(tmp_path, loss={"target_weights": [1 / 3] * 3}), []
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run, "plan", received.append) == path
        assert received == []
        other = run_in(tmp_path, loss={"target_weights": [0.5, 0.25, 0.25]})
        with pytest.raises(ConfigError, match=r"loss.target_weights = \[0\.5, 0\.25, 0\.25\]: was"):
            folder.find_resume_point("auto", other, "plan", received.append)


@pytest.mark.parametrize(("weight_decay", "then"), [(0.0, False), (0.1, True)])
def test_run_that_decayed_norms_and_biases_goes_on_only_by_doing_so(tmp_path, weight_decay, then):
    """As versions did that did not know the key."""
    path = save(tmp_path, 1, run=run_in(tmp_path, optim={"weight_decay": weight_decay}))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["run"]["optim"]["decay_norms_and_biases"]
    (path / "manifest.json").write_text(json.dumps(manifest))

    def run(now: bool) -> RunConfig:
        return run_in(tmp_path, optim={"weight_decay": weight_decay, "decay_norms_and_biases": now})

    received: list[str] = []
    with RunFolder(run(then), ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run(then), "plan", received.append) == path
        with pytest.raises(ConfigError, match=f"decay_norms_and_biases = {not then}: was {then} when step-00000001"):
            folder.find_resume_point("auto", run(not then), "plan", received.append)
    assert received == []


def test_resuming_from_a_folder_that_is_not_there_is_the_users_mistake(tmp_path):
    run = run_in(tmp_path)
    with RunFolder(run, ALONE, resume=True) as folder, pytest.raises(ConfigError, match="no such folder"):
        folder.find_resume_point(str(tmp_path / "nowhere"), run, "plan", print)


def test_history_is_cut_back_to_the_checkpoint(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with RunFolder(run_in(tmp_path), ALONE, resume=True) as folder:
        history = folder.open_history(2)
        assert history is not None
        history.write({"step": 3})
        history.close()
    assert (tmp_path / "history.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_changed_keys_are_dotted_and_hold_both_values():
    assert changed_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {"a.c": (2, 3), "d": (None, 4)}
