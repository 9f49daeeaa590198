"""Checkpoints count only when they are whole, and a run's folder only for the run that it is of."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ccts_dist.config import RunConfig, parse_run, run_to_tree
from ccts_dist.distributed import Ranks
from ccts_dist.errors import CheckpointError, ConfigError, OutputError
from ccts_dist.train.checkpoints.checkpoint import (
    TrainState,
    find_checkpoint,
    read_manifest,
    read_state,
    write_checkpoint,
)
from ccts_dist.train.run_folder import RunFolder, changed_keys

ALONE = Ranks()
WEIGHTS = "weights.safetensors"


def run_in(output: Path, **sections: object) -> RunConfig:
    tree = {"run_name": "r", "output_dir": str(output), "data": {"shards": "s"}, "model": {"speech": {"encoder": "e"}}}
    return parse_run(tree | sections)


def save(output: Path, step: int, *, keep: int = 2, content: bytes = b"weights", run: RunConfig | None = None) -> Path:
    return write_checkpoint(
        output,
        TrainState(step=step, epoch=1, best_loss=0.5),
        run=run_to_tree(run or run_in(output)),
        plan_digest="plan",
        ranks=ALONE,
        save_engine=lambda folder: write_weights(folder, content),
        keep=keep,
    )


def write_weights(folder: Path, content: bytes) -> dict[str, tuple[int, str]]:
    (folder / WEIGHTS).write_bytes(content)
    return {WEIGHTS: (len(content), hashlib.sha256(content).hexdigest())}


def test_state_comes_back_as_it_was_saved(tmp_path):
    path = save(tmp_path, 7)
    assert read_state(path) == TrainState(step=7, epoch=1, best_loss=0.5)
    assert read_manifest(path).num_ranks == 1


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000010"]


def test_half_written_and_altered_checkpoints_are_passed_over_and_named(tmp_path):
    whole, altered = save(tmp_path, 1), save(tmp_path, 2)
    (altered / WEIGHTS).write_bytes(b"WEIGHTS")
    (tmp_path / "checkpoints" / "step-00000003.partial").mkdir()
    received: list[str] = []
    found = find_checkpoint(tmp_path, received.append)
    assert found is not None
    assert found[0] == whole
    assert "step-00000003.partial" in received[0]
    assert "altered" in received[1]
    assert WEIGHTS in received[1]


def test_what_kills_have_left_half_written_goes_with_the_next_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002.partial" / "inner").mkdir(parents=True)
    save(tmp_path, 3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000003"]


def test_going_on_from_an_older_checkpoint_sets_the_later_ones_aside(tmp_path):
    run, received = run_in(tmp_path), []
    for step in (40, 50, 54):
        save(tmp_path, step, keep=3, run=run)
    older = tmp_path / "checkpoints" / "step-00000040"
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point(str(older), run, "plan", received.append) == older
    assert [words.split()[0] for words in received] == ["step-00000050", "step-00000054"]
    save(tmp_path, 47, keep=2, run=run)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["abandoned-step-00000050", "abandoned-step-00000054", "step-00000040", "step-00000047"]
    with RunFolder(run, ALONE, resume=True) as folder:
        found = folder.find_resume_point("auto", run, "plan", received.append)
        assert found == tmp_path / "checkpoints" / "step-00000047", "not what was left behind"
        again = tmp_path / "checkpoints" / "abandoned-step-00000054"
        assert folder.find_resume_point(str(again), run, "plan", received.append) == again, "it can still be taken"


def test_damaged_checkpoint_that_was_passed_over_is_set_aside(tmp_path):
    run = run_in(tmp_path)
    whole, damaged = save(tmp_path, 40, run=run), save(tmp_path, 45, run=run)
    (damaged / WEIGHTS).write_bytes(b"other")
    with RunFolder(run, ALONE, resume=True) as folder:
        assert folder.find_resume_point("auto", run, "plan", print) == whole
    assert not damaged.exists()
    assert (damaged.parent / "abandoned-step-00000045").is_dir()


@pytest.mark.parametrize("harm", ["cut", "missing", "no manifest"])
def test_checkpoint_with_a_harmed_file_is_refused(tmp_path, harm):
    path = save(tmp_path, 1)
    if harm == "cut":
        (path / WEIGHTS).write_bytes(b"wei")
    elif harm == "missing":
        (path / "state.json").unlink()
    else:
        (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="step-00000001"):
        read_manifest(path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format_version": 9}', "null", '{"files": []}', '{"files": {"a": 3}}'])
def test_manifest_of_another_form_is_passed_over(tmp_path, text):
    whole, altered = save(tmp_path, 1), save(tmp_path, 2)
    (altered / "manifest.json").write_text(text)
    found = find_checkpoint(tmp_path, lambda _: None)
    assert found is not None
    assert found[0] == whole


def test_checkpoint_of_another_run_is_the_users_mistake(tmp_path):
    other = save(tmp_path / "other", 1)
    run = run_in(tmp_path / "run")
    with RunFolder(run, ALONE, resume=True) as folder, pytest.raises(ConfigError, match="not a checkpoint of this run"):
        folder.find_resume_point(str(other), run, "plan", print)


def test_no_complete_checkpoint_is_an_error_and_none_at_all_is_a_beginning(tmp_path):
    assert find_checkpoint(tmp_path, print) is None
    (save(tmp_path, 1) / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"none of 1 checkpoints can be used; the newest: .*no readable manifest.json"
    ):
        find_checkpoint(tmp_path, lambda _: None)


def test_saving_that_fails_leaves_the_previous_checkpoint_whole(tmp_path):
    before = save(tmp_path, 1)

    def disk_full(folder: Path) -> dict[str, tuple[int, str]]:
        (folder / WEIGHTS).write_bytes(b"half")
        raise OutputError("No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_checkpoint(
            tmp_path, TrainState(step=2), run={}, plan_digest="plan", ranks=ALONE, save_engine=disk_full, keep=1
        )
    received: list[str] = []
    found = find_checkpoint(tmp_path, received.append)
    assert found is not None
    assert found[0] == before
    assert received == [], "what was half written takes no room"


def test_storage_that_fails_before_and_after_the_weights_is_reported_with_its_place(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002.partial").write_text("in the way")
    with pytest.raises(OutputError, match=r"step-00000002.partial: cannot be written .* --resume auto"):
        save(tmp_path, 2)
    with pytest.raises(OutputError, match=r"step-00000003.partial: cannot be written or read back: Is a directory"):
        write_checkpoint(
            tmp_path, TrainState(step=3), run={}, plan_digest="plan", ranks=ALONE,
            save_engine=lambda folder: (folder / "state.json").mkdir() or {}, keep=1,
        )  # fmt: skip
    assert find_checkpoint(tmp_path, lambda _: None) is not None


def test_checkpoint_of_an_earlier_format_is_refused_with_what_to_do(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    with pytest.raises(CheckpointError, match=r"checkpoint format 1, this program reads 2\. Finish the run with"):
        find_checkpoint(tmp_path, lambda _: None)


def test_step_that_is_checkpointed_again_is_there_at_every_moment(tmp_path, monkeypatch):
    before = save(tmp_path, 5, content=b"first")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "step-00000005.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 5, content=b"second")
    monkeypatch.undo()
    found = find_checkpoint(tmp_path, lambda _: None)
    assert found is not None
    assert (found[0] / WEIGHTS).read_bytes() == b"first"
    save(tmp_path, 5, content=b"third")
    found = find_checkpoint(tmp_path, lambda _: None)
    assert found is not None
    assert found[0] == before
    assert (before / WEIGHTS).read_bytes() == b"third"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_of_two_checkpoints_of_one_step_the_one_that_replaced_the_other_counts(tmp_path):
    """A kill may leave both, each whole."""
    replaced = tmp_path / "checkpoints" / "step-00000005.replaced"
    shutil.copytree(save(tmp_path, 5, content=b"older"), tmp_path / "older")
    newer = save(tmp_path, 5, content=b"newer")
    (tmp_path / "older").rename(replaced)
    found = find_checkpoint(tmp_path, lambda _: None)
    assert found is not None
    assert found[0] == newer
    save(tmp_path, 6, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


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
