"""Checkpoints count only when they are whole."""

import json
import shutil
from pathlib import Path

import pytest

from ccts_dist.errors import CheckpointError, ConfigError, OutputError
from ccts_dist.train.checkpoints.checkpoint import (
    TrainState,
    find_checkpoint,
    read_manifest,
    read_state,
    write_checkpoint,
)
from ccts_dist.train.run_folder import RunFolder
from tests.helpers.examples.checkpoints import ALONE, WEIGHTS, run_in, save


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
