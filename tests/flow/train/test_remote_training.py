"""Training from a real S3 server of which some requests fail: the losses are those of training from disk."""

from pathlib import Path

import pytest

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError
from ccts_dist.shards import open_shard_set
from ccts_dist.train.experiment import check_experiment
from tests.helpers.examples.shard_examples import EMBEDDING_SIZE, build_example, example_cache, make_utterances
from tests.helpers.processes.launching import launch, launch_well
from tests.helpers.processes.small_runs import read_history, without_times, write_run
from tests.helpers.servers.s3_server import ACCESS_KEY, SECRET_KEY, Rule, s3_server

NUM_UTTERANCES = 120


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of two utterances a shard, and a teacher cache of it."""
    folder = tmp_path_factory.mktemp("material")
    utterances = make_utterances(folder, NUM_UTTERANCES)
    build_example(utterances, folder / "shards", folder, shard_bytes=9_000)
    example_cache(folder / "teacher", open_shard_set(folder / "shards"))
    return folder


def run_file(path: Path, shards: str, teacher: str, *, cache: Path, shard_cache_gb: float = 1.0) -> Path:
    """A student's run of one epoch and a half, in windows of a third of the training utterances."""
    data = {
        "shards": shards, "teacher_cache": teacher, "test_splits": [], "shuffle_buffer_size": NUM_UTTERANCES // 4,
        "num_workers": 2, "shard_cache": str(cache), "shard_cache_gb": shard_cache_gb,
    }  # fmt: skip
    return write_run(
        path,
        Path(shards),
        path.with_suffix(""),
        data=data,
        model={"embedding_dim": EMBEDDING_SIZE},
        distill={"embedding_weight": 1.0},
        batch={"global_batch_size": 6, "micro_batch_size": 3},
        train={"epochs": 2, "max_steps": 22},
    )


@pytest.mark.long
def test_losses_are_those_of_training_from_disk_when_every_twentieth_request_fails(
    tmp_path: Path, material: Path
) -> None:
    local = run_file(
        tmp_path / "local.toml", str(material / "shards"), str(material / "teacher"), cache=tmp_path / "no"
    )
    launch_well(2, "launch/train.py", "--config", str(local))
    with s3_server(tmp_path / "server") as server:
        server.upload(material / "shards", "bucket/shards")
        server.upload(material / "teacher", "bucket/teacher")
        server.treat(Rule(fault_rate=0.05, seed=3, stall_s=40.0))
        there = ("s3://bucket/shards", "s3://bucket/teacher")
        remote = run_file(tmp_path / "remote.toml", *there, cache=tmp_path / "cache")
        done = launch(2, "launch/train.py", "--config", str(remote), env=server.environment(), timeout_s=400.0)
        words = done.stdout + done.stderr
        assert done.returncode == 0, words[-8000:]
        assert server.faults()
        shards = open_shard_set(material / "shards").manifest.shards
        assert len(server.gets("bucket/shards")) == len(shards) + 2  # the validation's, index and manifest, too
    assert without_times(read_history(tmp_path / "remote")) == without_times(read_history(tmp_path / "local"))
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret not in words
        written = [path for path in (tmp_path / "remote").rglob("*.*") if path.is_file()]
        assert not any(secret.encode() in path.read_bytes() for path in written)


def test_cache_smaller_than_a_window_and_the_next_is_refused_before_training(tmp_path: Path, material: Path) -> None:
    there = (f"file://{material}/shards", f"file://{material}/teacher")
    config = run_file(tmp_path / "run.toml", *there, cache=tmp_path / "cache", shard_cache_gb=1e-5)
    with (
        pytest.raises(ConfigError, match=r"data.shard_cache_gb = 1e-05: the shards of a window and of the next one"),
        check_experiment(read_run(config, []), 1),
    ):
        pass
    with check_experiment(read_run(config, ["data.shard_cache_gb=1"]), 1) as experiment:
        assert experiment.loader.bytes_at_once() > 0
