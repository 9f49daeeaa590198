"""launch/cache_teacher.py of two teachers: two ranks under the deepspeed launcher, killed, resumed, refused."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import open_teacher_cache
from tests.helpers.models.small_teacher import build_small_shards, cache_bytes, save_small_teacher
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, inner_launcher

SCRIPT = ROOT / "launch" / "cache_teacher.py"
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Material:
    folder: Path
    shard_set: ShardSet
    teachers: tuple[Path, Path]

    def options(self, out: Path, shards: Path | None = None, *, reverse: bool = False) -> list[str]:
        """One utterance per forward pass, so that a pass lasts long enough to be killed in its middle."""
        shards = shards or self.shard_set.root
        teachers = [f"--teacher={teacher}" for teacher in self.teachers[:: -1 if reverse else 1]]
        return [*teachers, f"--shards={shards}", f"--out={out}", "--batch-seconds=0.1"]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("cache")
    shard_set = build_small_shards(folder / "corpus", {"Train": 120, "Development": 20}, shard_bytes=12_000)
    assert len(shard_set.manifest.shards) > 40
    teachers = save_small_teacher(folder / "teacher"), save_small_teacher(folder / "deaf", seed=1, with_text=False)
    return Material(folder, shard_set, teachers)


@pytest.fixture(scope="module")
def one_rank(material: Material) -> Path:
    """The cache of a process without a launcher, which was given the teachers the other way round."""
    out = material.folder / "one-rank"
    done = finish(start([sys.executable, str(SCRIPT), *material.options(out, reverse=True)]))
    assert done.code == 0, done.stderr
    return out


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


def start(command: list[str]) -> Forked:
    """A command in a process group of its own, one thread per process, without a GPU."""
    return Forked(command, cwd=ROOT, env=environment({"CUDA_VISIBLE_DEVICES": ""}), stderr=subprocess.PIPE)


def start_two_ranks(options: list[str]) -> Forked:
    return start([*inner_launcher(2), str(SCRIPT), *options])


def finish(process: Forked) -> Done:
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    return Done(process.returncode, stdout, stderr)


def kill_all(process: Forked) -> None:
    """SIGKILL to everything that the command has started; returns when all of it has gone."""
    group = process.pid
    os.killpg(group, signal.SIGKILL)
    process.communicate(timeout=60)  # ends when no process holds its pipes any more


def test_two_ranks_killed_in_the_middle_go_on_and_end_with_the_bytes_of_one_rank(material: Material, one_rank: Path):
    out = material.folder / "two-ranks"
    process = start_two_ranks(material.options(out))
    deadline = time.monotonic() + TIMEOUT_S
    while len(list(out.glob("*.tar"))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_all(process)
    num_there = len(list(out.glob("*.tar")))
    assert 4 <= num_there < len(material.shard_set.manifest.shards), "it was not killed in its middle"
    assert not (out / "manifest.json").exists()

    done = finish(start_two_ranks(material.options(out)))
    assert done.code == 0, done.stderr
    (last,) = (line for line in done.stdout.splitlines() if line.startswith(f"{out}: "))
    kept = int(last.split(" of them reused")[0].split()[-1])
    assert num_there - 2 <= kept <= num_there, "at most one shard per rank was written but not yet recorded"
    assert "the any-dimension gate at 2 standard deviations rejects" in last
    assert cache_bytes(out) == cache_bytes(one_rank)
    cache = open_teacher_cache(out, material.shard_set)
    assert cache.condition.splits == ("Train",)
    assert not list(out.rglob("*.partial")), "what the killed pass had begun was written over"


def test_cache_of_another_shard_set_is_refused_in_one_line_with_both_digests(material: Material, one_rank: Path):
    other = build_small_shards(material.folder / "other", {"Train": 12}, seed=1)
    before = cache_bytes(one_rank)
    done = finish(start([sys.executable, str(SCRIPT), *material.options(one_rank, other.root)]))
    assert done.code == 2, done.stderr
    (line,) = done.errors()
    shard = "Train-000000.tar"
    for shards in (material.shard_set, other):
        digest = next(entry.sha256 for entry in shards.manifest.shards if entry.name == shard)
        assert digest[:12] in line
    assert "Traceback" not in done.stderr
    assert cache_bytes(one_rank) == before


def test_damaged_shard_of_one_rank_ends_both_with_one_line_that_names_it(material: Material):
    shard_set = build_small_shards(material.folder / "damaged", {"Train": 8}, shard_bytes=12_000)
    # The largest shard goes to rank 0, the next to rank 1.
    shards = sorted(shard_set.manifest.shards, key=lambda shard: (-shard.num_samples, shard.name))
    path = shard_set.path(shards[1].name)
    place = int(shard_set.rows(path.name).members["flac"].offset[0]) + 60
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    done = finish(start_two_ranks(material.options(material.folder / "cache-of-damaged", shard_set.root)))
    assert done.code == 1, done.stderr
    (line,) = done.errors()
    assert path.name in line
    assert "Traceback" not in done.stderr
