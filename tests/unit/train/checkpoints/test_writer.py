"""A checkpoint that a thread writes is the one that was begun, or none, and never two at a time."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ccts_dist.distributed import Ranks
from ccts_dist.errors import OutputError
from ccts_dist.train.checkpoints.checkpoint import CheckpointFiles, TrainState, find_checkpoint, read_state
from ccts_dist.train.checkpoints.writer import CheckpointWriter
from tests.helpers.models.plain_engine import train_plainly
from tests.helpers.processes.small_runs import build_two_kinds, write_run

ALONE = Ranks()
WEIGHTS = "weights.safetensors"


@dataclass
class Copied:
    """Writes once it is let go."""

    content: bytes
    go: threading.Event = field(default_factory=threading.Event)
    before: Callable[[Path], object] = lambda folder: None

    def write(self, folder: Path) -> dict[str, tuple[int, str]]:
        assert self.go.wait(60)
        self.before(folder)
        (folder / WEIGHTS).write_bytes(self.content)
        return {WEIGHTS: (len(self.content), hashlib.sha256(self.content).hexdigest())}


def files_of(output: Path, state: TrainState) -> CheckpointFiles:
    return CheckpointFiles(output, state, run={}, plan_digest="plan", ranks=ALONE, keep=1)


def newest(output: Path) -> str:
    found = find_checkpoint(output, lambda _: None)
    return "" if found is None else found[0].name


def save(writer: CheckpointWriter, output: Path, step: int) -> None:
    copied = Copied(b"whole")
    copied.go.set()
    writer.start(files_of(output, TrainState(step=step)), lambda: copied)
    writer.wait()


def test_training_goes_on_while_the_checkpoint_of_what_was_is_written(tmp_path):
    writer, copied, state = CheckpointWriter(ALONE), Copied(b"seven"), TrainState(step=7, best_loss=0.5)
    save(writer, tmp_path, 3)
    writer.start(files_of(tmp_path, state), lambda: copied)
    state.step, state.best_loss = 8, 0.25
    writer.check()
    assert newest(tmp_path) == "step-00000003", "the one before counts until this one is complete"
    copied.go.set()
    writer.wait()
    assert newest(tmp_path) == "step-00000007"
    assert read_state(tmp_path / "checkpoints" / "step-00000007") == TrainState(step=7, best_loss=0.5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000007"]


def test_next_checkpoint_is_copied_only_when_the_one_before_is_complete(tmp_path):
    writer, first, second = CheckpointWriter(ALONE), Copied(b"first"), Copied(b"second")
    seen: list[str] = []

    def copy() -> Copied:
        seen.append(newest(tmp_path))
        return second

    writer.start(files_of(tmp_path, TrainState(step=1)), lambda: first)
    starting = threading.Thread(target=lambda: writer.start(files_of(tmp_path, TrainState(step=2)), copy))
    starting.start()
    assert not (tmp_path / "checkpoints" / "step-00000002.partial").exists()
    first.go.set()
    second.go.set()
    starting.join(60)
    writer.wait()
    assert seen == ["step-00000001"]
    assert newest(tmp_path) == "step-00000002"


def test_storage_that_fails_in_the_thread_is_raised_where_ranks_meet_and_leaves_the_one_before(tmp_path):
    writer = CheckpointWriter(ALONE)
    save(writer, tmp_path, 1)
    # Files of the checkpoint are synced, and this one is none.
    copied = Copied(b"", before=lambda folder: (folder / "state.json").mkdir())
    writer.start(files_of(tmp_path, TrainState(step=2)), lambda: copied)
    writer.check()
    copied.go.set()
    writer.close()
    for meet in (writer.check, writer.wait):
        with pytest.raises(OutputError, match=r"step-00000002.partial: cannot be written or read back: Is a directory"):
            meet()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_checkpoint_that_cannot_be_begun_is_an_error_at_once(tmp_path):
    writer = CheckpointWriter(ALONE)
    save(writer, tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002.partial").write_text("in the way")
    with pytest.raises(OutputError, match=r"step-00000002.partial: cannot be written"):
        save(writer, tmp_path, 2)
    assert newest(tmp_path) == "step-00000001"


def test_fault_of_the_program_in_the_thread_is_not_lost(tmp_path):
    writer, copied = CheckpointWriter(ALONE), Copied(b"", before=lambda folder: {}["no such key"])
    writer.start(files_of(tmp_path, TrainState(step=2)), lambda: copied)
    copied.go.set()
    with pytest.raises(KeyError, match="no such key"):
        writer.wait()


def test_checkpoints_of_every_second_epoch_hold_what_waiting_for_them_would(tmp_path):
    shards = build_two_kinds(tmp_path, num_train=32, num_valid=8).root
    contents = []
    for name, asynchronous in (("beside", True), ("waiting", False)):
        train = {
            "epochs": 5, "max_steps": 0, "save_epochs": 2, "save_total_limit": 9, "async_save": asynchronous,
        }  # fmt: skip
        config = write_run(
            tmp_path / "run.toml", Path(shards), tmp_path / name, data={"test_splits": []}, train=train,
            optim={"name": "adam"},
        )  # fmt: skip
        folder = train_plainly(config) / "checkpoints"
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000008", "step-00000010"]
        contents.append(
            {
                str(path.relative_to(folder)): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file() and path.name != "manifest.json"  # it has the run's own name of its folder
            }
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) == 6
