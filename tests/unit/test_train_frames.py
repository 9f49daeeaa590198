"""Frames that are kept before training: as the run file says, each kind in a folder of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ccts_dist.config import RunConfig, read_run
from ccts_dist.distributed import Ranks
from ccts_dist.model import build_model
from ccts_dist.shards.read import ShardSet
from ccts_dist.train.frames import keep_frames
from tests.small_runs import SPEECH, build_two_kinds, write_run

FROZEN = {"trainable": "none", "train_front_end": False}


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return build_two_kinds(tmp_path_factory.mktemp("corpus"), num_train=6, num_valid=2)


def run_with(folder: Path, shard_set: ShardSet, **data: str) -> RunConfig:
    return read_run(
        write_run(
            folder / "run.toml", Path(shard_set.root), folder / "run",
            data={"frames": str(folder / "frames"), **data}, model={"speech": {**SPEECH, **FROZEN}},
        )
    )  # fmt: skip


def files_of(run: RunConfig, shard_set: ShardSet) -> list[Path]:
    """The files of frames that this run adds to its folder; the encoder is the same each time."""
    before = set(Path(run.data.frames).rglob("*.frames.npy"))
    torch.manual_seed(run.seed)
    keep_frames(run, build_model(run.model), None, shard_set, Ranks())
    return sorted(set(Path(run.data.frames).rglob("*.frames.npy")) - before)


def test_each_type_of_frames_has_its_own_folder_and_is_on_disk_as_it_is_named(tmp_path: Path, shard_set: ShardSet):
    plain, single, half = (
        files_of(run_with(tmp_path, shard_set, **data), shard_set)
        for data in ({}, {"frames_type": "float32"}, {"frames_type": "float16"})
    )
    assert single == [], "float32 is the default: they are there already"
    assert [file.name for file in plain] == [file.name for file in half] != []
    assert len({file.parent for file in plain + half}) == 2
    for one, other in zip(plain, half, strict=True):
        wide, narrow = np.load(one), np.load(other)
        assert (wide.dtype, narrow.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(wide.astype(np.float16), narrow)
