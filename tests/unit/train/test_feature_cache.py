"""Frames that are kept before training: as the run file states, each kind in a folder of its own."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from ccts_dist.config import RunConfig, read_run
from ccts_dist.distributed import Ranks
from ccts_dist.model import build_model
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.train.experiment import open_experiment
from ccts_dist.train.inputs.feature_cache import cache_features
from tests.helpers.processes.small_runs import SPEECH, build_two_kinds, write_run

FROZEN = {"trainable": "none", "train_feature_encoder": False}


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return build_two_kinds(tmp_path_factory.mktemp("corpus"), num_train=6, num_valid=2)


def run_with(folder: Path, shard_set: ShardSet, **data: str) -> RunConfig:
    return read_run(
        write_run(
            folder / "run.toml", Path(shard_set.root), folder / "run",
            data={"feature_cache": str(folder / "frames"), **data}, model={"speech": {**SPEECH, **FROZEN}},
        )
    )  # fmt: skip


def files_of(run: RunConfig, shard_set: ShardSet) -> list[Path]:
    """The files of frames that this run adds to its folder; the encoder is the same each time."""
    before = set(Path(run.data.feature_cache).rglob("*.frames.npy"))
    torch.manual_seed(run.seed)
    cache_features(run, build_model(run.model), None, shard_set, Ranks())
    return sorted(set(Path(run.data.feature_cache).rglob("*.frames.npy")) - before)


def test_each_type_of_frames_has_its_own_folder_and_is_on_disk_as_it_is_named(tmp_path: Path, shard_set: ShardSet):
    plain, single, half = (
        files_of(run_with(tmp_path, shard_set, **data), shard_set)
        for data in ({}, {"feature_cache_dtype": "float32"}, {"feature_cache_dtype": "float16"})
    )
    assert single == [], "float32 is the default: they are there already"
    assert [file.name for file in plain] == [file.name for file in half] != []
    assert len({file.parent for file in plain + half}) == 2
    for one, other in zip(plain, half, strict=True):
        wide, narrow = np.load(one), np.load(other)
        assert (wide.dtype, narrow.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(wide.astype(np.float16), narrow)


def test_frames_of_words_leave_the_augmentation_of_the_audio_as_it_was(tmp_path: Path, shard_set: ShardSet):
    text = {
        "encoder": "scratch", "vocab_size": 40, "trainable": "none", "pooling": "mean", "max_tokens": 16,
        "scratch": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "intermediate_size": 32},
    }  # fmt: skip
    received = {}
    for name, frames, noises in (("plain", "", ["white"]), ("kept", "frames", ["white"]), ("clean", "frames", [])):
        run = read_run(
            write_run(
                tmp_path / f"{name}.toml", Path(shard_set.root), tmp_path / name,
                data={"feature_cache": frames and str(tmp_path / frames)}, model={"speech": SPEECH, "text": text},
                batch={"global_batch_size": 6}, augment={"noises": noises},
            )
        )  # fmt: skip
        with closing(open_experiment(run, Ranks())) as experiment:
            (batch,) = next(iter(experiment.loader.epoch(0))).micro_batches
            received[name] = batch.audio
            assert set(batch.frames) == ({"text"} if frames else set())
    torch.testing.assert_close(received["kept"], received["plain"], rtol=0, atol=0)
    assert not torch.equal(received["kept"], received["clean"])
