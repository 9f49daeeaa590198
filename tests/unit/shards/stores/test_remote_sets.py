"""Shard sets and teacher caches under an address: as from a folder, whatever happens on the way."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ccts_dist.errors import FetchError, MissingShardsError, ShardError, TeacherError
from ccts_dist.shards import ShardSet, TeacherCache, open_merged_teacher, open_shard_set, open_teacher_cache
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.format.schema import INDEX_NAME, MANIFEST_NAME
from ccts_dist.shards.merge import merge_shards
from tests.helpers.examples.shard_examples import example_cache, example_output, example_shard_set, flip_bit
from tests.helpers.faults.flaky_store import Flaky, flaky_file_system, raises, until

ADDRESS = "flaky://place/set"
CACHE_ADDRESS = "flaky://place/teacher"


@pytest.fixture(autouse=True)
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Flaky]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with flaky_file_system() as file_system:
        yield file_system


@pytest.fixture
def local(tmp_path: Path) -> ShardSet:
    """A shard set in a folder, and the same under the address."""
    shard_set = example_shard_set(tmp_path)
    upload(tmp_path / "shards", ADDRESS)
    return shard_set


def upload(folder: Path, address: str) -> None:
    for path in folder.iterdir():
        fsspec.filesystem("flaky").pipe_file(f"{address}/{path.name}", path.read_bytes() if path.is_file() else b"")


def remote(tmp_path: Path) -> ShardSet:
    return open_shard_set(ADDRESS, cache=tmp_path / "fetched", cache_bytes=10**8)


def remote_teacher(tmp_path: Path, shard_set: ShardSet) -> TeacherCache:
    return open_teacher_cache(CACHE_ADDRESS, shard_set, cache=tmp_path / "fetched", cache_bytes=10**8)


def members(shard_set: ShardSet) -> dict[tuple[str, str], bytes]:
    """Every member of every utterance."""
    tables = [shard_set.rows(shard.name) for shard in shard_set.manifest.shards]
    return {
        (table.keys[row], member): shard_set.member(table, row, member)
        for table in tables
        for row in range(len(table))
        for member in table.members
    }


def test_set_under_an_address_reads_as_from_a_folder(tmp_path: Path, local: ShardSet) -> None:
    there = remote(tmp_path)
    assert (there.digest, there.root) == (local.digest, ADDRESS)
    assert members(there) == members(local)
    assert members(pickle.loads(pickle.dumps(there))) == members(local)
    assert check_shard_set(there.root) == []


def test_each_file_is_asked_for_once(tmp_path: Path, local: ShardSet, flaky: type[Flaky]) -> None:
    there = remote(tmp_path)
    there.prefetch([shard.name for shard in there.manifest.shards])
    until(lambda: there.store.statistics.num_files == len(there.manifest.shards))
    members(there)
    members(remote(tmp_path))
    there.store.close()
    shards = [shard.name for shard in local.manifest.shards]
    assert sorted(flaky.opened) == sorted([MANIFEST_NAME, MANIFEST_NAME, INDEX_NAME, *shards])


def test_bytes_to_fetch_are_those_of_the_shards_that_are_not_here(tmp_path: Path, local: ShardSet) -> None:
    shards = local.manifest.shards[:2]
    names = [shard.name for shard in shards]
    assert local.bytes_to_fetch(names) == 0
    assert remote(tmp_path).bytes_to_fetch(names) == sum(shard.size_bytes for shard in shards)


def test_address_without_a_set_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(MissingShardsError, match=r"flaky://place/set: no shard set here .* is not there"):
        remote(tmp_path)


def test_manifest_that_was_damaged_on_its_way_is_asked_for_again(
    tmp_path: Path, local: ShardSet, flaky: type[Flaky]
) -> None:
    path = f"/place/set/{MANIFEST_NAME}"
    whole = fsspec.filesystem("flaky").cat_file(path)
    fsspec.filesystem("flaky").pipe_file(path, whole.replace(b"example", b"exanple"))
    flaky.troubles += [lambda: None, lambda: fsspec.filesystem("flaky").pipe_file(path, whole)]
    assert remote(tmp_path).digest == local.digest


def test_manifest_that_lies_there_damaged_is_refused(tmp_path: Path, local: ShardSet) -> None:
    path = f"/place/set/{MANIFEST_NAME}"
    whole = fsspec.filesystem("flaky").cat_file(path)
    fsspec.filesystem("flaky").pipe_file(path, whole.replace(b"example", b"exanple"))
    with pytest.raises(ShardError, match=r"flaky://place/set/manifest.json: was changed after it was written"):
        remote(tmp_path)


@pytest.mark.parametrize("suffix", [".tar", INDEX_NAME])
def test_fetched_file_that_was_damaged_here_is_fetched_again(tmp_path: Path, local: ShardSet, suffix: str) -> None:
    members(remote(tmp_path))
    for path in (tmp_path / "fetched").glob(f"*{suffix}"):
        for at in range(0, path.stat().st_size, 50):
            flip_bit(path, at)
    assert members(remote(tmp_path)) == members(local)


def test_member_that_is_damaged_in_the_store_is_named_after_one_more_fetch(
    tmp_path: Path, local: ShardSet, flaky: type[Flaky]
) -> None:
    """Its shard's digest is the manifest's, so that only the index knows."""
    there, table = remote(tmp_path), local.rows(local.manifest.shards[0].name)
    places = there.rows(table.shard).members["flac"]
    places.crc32.flags.writeable = True
    places.crc32[1] ^= 1
    for _ in range(2):
        with pytest.raises(ShardError, match=rf"{table.shard}: flac of '{table.keys[1]}' is damaged"):
            there.member(there.rows(table.shard), 1, "flac")
    assert flaky.opened.count(table.shard) == 2


def test_shard_that_is_missing_in_the_store_is_damage_with_its_key(tmp_path: Path, local: ShardSet) -> None:
    table = local.rows(local.manifest.shards[0].name)
    fsspec.filesystem("flaky").rm(f"/place/set/{table.shard}")
    with pytest.raises(ShardError, match=rf"{table.shard}: cannot read flac of '{table.keys[0]}' .*is not there"):
        remote(tmp_path).member(table, 0, "flac")


def test_store_that_is_away_is_no_damage(tmp_path: Path, local: ShardSet, flaky: type[Flaky]) -> None:
    there, table = remote(tmp_path), local.rows(local.manifest.shards[0].name)
    flaky.troubles.append(raises(PermissionError()))
    with pytest.raises(FetchError, match="may not be read"):
        there.member(table, 0, "flac")


def test_teacher_cache_under_an_address_reads_as_from_a_folder(
    tmp_path: Path, local: ShardSet, flaky: type[Flaky]
) -> None:
    cache = example_cache(tmp_path / "teacher", local)
    upload(tmp_path / "teacher", CACHE_ADDRESS)
    there = remote_teacher(tmp_path, remote(tmp_path))
    names = [shard.name for shard in local.manifest.shards]
    assert there.bytes_to_fetch(names) == sum((tmp_path / "teacher" / name).stat().st_size for name in names)
    assert (there.digest, there.condition, cache.bytes_to_fetch(names)) == (cache.digest, cache.condition, 0)
    there.prefetch([*names, "Test3-000000.tar"])  # one that it lacks is reported when it is read
    for name in names:
        for row, key in enumerate(local.rows(name).keys):
            assert there.read(name, row, key).embedding.tolist() == example_output(key).embedding.tolist()
    flaky.store.clear()
    pickle.loads(pickle.dumps(there)).read(names[0], 0, local.rows(names[0]).keys[0])
    there.store.close()


def test_address_without_a_teacher_cache_is_the_users_mistake(tmp_path: Path, local: ShardSet) -> None:
    with pytest.raises(TeacherError, match=r"flaky://place/teacher: no teacher cache here .* is not there"):
        remote_teacher(tmp_path, local)


def test_condition_that_is_missing_or_another_is_refused(tmp_path: Path, local: ShardSet) -> None:
    example_cache(tmp_path / "teacher", local)
    upload(tmp_path / "teacher", CACHE_ADDRESS)
    fsspec.filesystem("flaky").pipe_file("/place/teacher/condition.json", b"{}")
    with pytest.raises(TeacherError, match=r"flaky://place/teacher/condition.json: is not the one"):
        remote_teacher(tmp_path, local)
    fsspec.filesystem("flaky").rm("/place/teacher/condition.json")
    with pytest.raises(TeacherError, match=r"flaky://place/teacher/condition.json: is missing"):
        remote_teacher(tmp_path, local)


def test_teacher_that_cannot_be_fetched_is_no_damage(tmp_path: Path, local: ShardSet, flaky: type[Flaky]) -> None:
    example_cache(tmp_path / "teacher", local)
    upload(tmp_path / "teacher", CACHE_ADDRESS)
    there, name = remote_teacher(tmp_path, local), local.manifest.shards[0].name
    there.read(name, 0, local.rows(name).keys[0])
    os.unlink(there.store.path(there._rows.stored(name).file))
    flaky.troubles.append(raises(PermissionError()))
    with pytest.raises(FetchError, match="may not be read"):
        there.read(name, 0, local.rows(name).keys[0])


def test_merging_and_its_result_can_lie_under_addresses(tmp_path: Path, local: ShardSet) -> None:
    cache = example_cache(tmp_path / "teacher", local)
    upload(tmp_path / "teacher", CACHE_ADDRESS)
    there = remote(tmp_path)
    digest = merge_shards(there, remote_teacher(tmp_path, there), tmp_path / "merged")
    assert digest == merge_shards(local, cache, tmp_path / "merged-here")
    upload(tmp_path / "merged", "flaky://place/merged")
    merged = open_shard_set("flaky://place/merged", cache=tmp_path / "fetched")
    teacher = open_merged_teacher(merged)
    names = [shard.name for shard in merged.manifest.shards]
    assert teacher.bytes_to_fetch(names) == 0  # they are the set's own, which are counted there
    key = merged.rows(names[0]).keys[0]
    assert teacher.read(names[0], 0, key).embedding.tolist() == example_output(key).embedding.tolist()
