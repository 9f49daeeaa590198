"""Index and reader: one shard's rows at a time, one member at a time."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError, MissingShardsError, ShardError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.shards import MemberPlaces, ShardRows, ShardSet, open_shard_set, read_member
from ccts_dist.shards.format.index import IndexPlace, RowGroups, rows_to_table, table_to_rows
from ccts_dist.shards.format.index_validation import places_fault
from ccts_dist.shards.format.index_writer import IndexWriter
from ccts_dist.shards.format.schema import MANIFEST_NAME
from tests.helpers.examples.shard_examples import example_shard_set, flip_bit
from tests.tiers import examples


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return example_shard_set(tmp_path_factory.mktemp("set"))


def make_rows(shard: str, keys: tuple[str, ...], label: list[float]) -> ShardRows:
    numbers = np.arange(len(keys), dtype=np.int64)
    places = MemberPlaces(offset=numbers * 512, size=numbers, crc32=numbers.astype(np.uint32) + 4_000_000_000)
    return ShardRows(
        shard=shard,
        keys=keys,
        num_samples=numbers + 400,
        labels={"valence": np.array(label, np.float64)},
        speakers=tuple(None if number % 2 else "s" for number in range(len(keys))),
        genders=(None,) * len(keys),
        categories=("Happy",) * len(keys),
        members={"flac": places, "teacher.npy": places},
    )


@examples(10)
@given(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=5))
def test_rows_come_back_from_their_batch(tmp_path_factory: pytest.TempPathFactory, labels: list[float]):
    path = tmp_path_factory.mktemp("index") / "index.arrow"
    rows = make_rows("a.tar", tuple(f"ü.{number}" for number in range(len(labels))), labels)
    with IndexWriter(path) as index:
        index.add(rows_to_table(rows))
    back = table_to_rows("a.tar", pa.ipc.open_file(path).get_batch(0))
    assert (back.keys, back.speakers, back.genders, back.categories) == (
        rows.keys,
        rows.speakers,
        rows.genders,
        rows.categories,
    )
    np.testing.assert_array_equal(back.num_samples, rows.num_samples)
    np.testing.assert_array_equal(back.labels["valence"], rows.labels["valence"])
    for member in ("flac", "teacher.npy"):
        for name in ("offset", "size", "crc32"):
            np.testing.assert_array_equal(getattr(back.members[member], name), getattr(rows.members[member], name))


@dataclasses.dataclass(frozen=True)
class Listed:
    """A shard as a manifest lists it."""

    name: str
    num_utterances: int
    index: IndexPlace


def decode_rows(listed: Listed, batch: pa.RecordBatch) -> ShardRows:
    return table_to_rows(listed.name, batch)


def write_index(path: Path, counts: dict[str, int]) -> list[Listed]:
    listed = []
    with IndexWriter(path) as index:
        for shard, count in counts.items():
            rows = make_rows(shard, tuple(f"{shard}{n}" for n in range(count)), [0.5] * count)
            listed.append(Listed(shard, count, index.add(rows_to_table(rows))))
    assert (index.size_bytes, index.sha256) == (path.stat().st_size, file_sha256(path))
    return listed


def test_one_batch_per_shard_however_large_for_every_arrow_reader(tmp_path: Path):
    write_index(tmp_path / "i", {"a": 1, "b": 70_000, "c": 2})
    file = pa.ipc.open_file(tmp_path / "i")
    assert [file.get_batch(number).num_rows for number in range(file.num_record_batches)] == [1, 70_000, 2]


@examples(30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_any_changed_byte_is_seen_by_the_shards_it_touches(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], data: st.DataObject
):
    path = tmp_path_factory.mktemp("index") / "i"
    listed = write_index(path, {f"{number}.tar": count for number, count in enumerate(counts)})
    last = listed[-1].index
    at = data.draw(st.integers(0, last.offset + last.size - 1))
    flip_bit(path, at)
    groups = RowGroups(path, listed, decode_rows)
    for shard in listed:
        place = shard.index
        if at < listed[0].index.offset or place.offset <= at < place.offset + place.size:
            with pytest.raises(ShardError, match=rf"{shard.name}: its rows in .* The index is stale or damaged"):
                groups.get(shard.name)
        else:
            assert len(groups.get(shard.name)) == shard.num_utterances


def test_shards_are_forgotten_the_longest_unused_first(tmp_path: Path):
    counts = {"a": 3, "b": 3, "c": 3, "huge": 9}
    listed = write_index(tmp_path / "i", counts)
    decoded: list[str] = []

    def decode(listed: Listed, table: pa.RecordBatch) -> int:
        decoded.append(listed.name)
        return table.num_rows

    groups = RowGroups(tmp_path / "i", listed, decode, max_rows=6)
    for shard in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, b pushes c out
        assert groups.get(shard) == 3
    assert decoded == ["a", "b", "c", "b"]
    assert groups.get("huge") == 9  # larger than the bound, and kept alone
    assert groups.get("huge") == 9
    assert decoded == ["a", "b", "c", "b", "huge"]


@pytest.mark.parametrize(
    ("offset", "size", "words"),
    [
        (90, 10, ""),
        (0, 100, ""),
        (90, 11, "flac of 'k' lies at byte 90, of 11 bytes"),
        (101, 0, "flac of 'k' lies at byte 101, of 0 bytes"),
        (-1, 5, "flac of 'k' lies at byte -1, of 5 bytes"),
    ],
)
def test_a_member_lies_within_its_shard_to_the_last_byte(offset: int, size: int, words: str):
    places = MemberPlaces(offset=np.array([offset]), size=np.array([size]), crc32=np.zeros(1, np.uint32))
    assert places_fault(places, 100, "flac", ("k",)) == words


def test_an_index_that_is_not_the_manifests_is_seen_when_rows_are_read(tmp_path: Path):
    (listed,) = write_index(tmp_path / "i", {"a": 3})
    with pytest.raises(ShardError, match=r"a: 3 rows in .*/i, and the manifest states 4. The index is stale"):
        RowGroups(tmp_path / "i", [dataclasses.replace(listed, num_utterances=4)], decode_rows).get("a")
    with pytest.raises(ShardError, match=r"b: not in .*/i. Take a shard"):
        RowGroups(tmp_path / "i", [listed], decode_rows).get("b")
    with pytest.raises(ShardError, match=r"a: cannot read its rows .*No such file"):
        RowGroups(tmp_path / "j", [listed], decode_rows).get("a")


def test_an_index_of_no_shards_is_still_a_file_and_a_failed_one_is_none(tmp_path: Path):
    with IndexWriter(tmp_path / "i"):
        pass
    assert pa.ipc.open_file(tmp_path / "i").num_record_batches == 0
    with pytest.raises(ShardError, match=r"stop"), IndexWriter(tmp_path / "j"):
        raise ShardError("stop")
    assert not (tmp_path / "j").exists()


def test_every_utterance_is_read_with_its_transcript_and_audio(shard_set: ShardSet):
    seen = {}
    for shard in shard_set.manifest.shards:
        rows, path = shard_set.rows(shard.name), shard_set.path(shard.name)
        assert len(rows) == shard.num_utterances
        for row, key in enumerate(rows.keys):
            seen[key] = json.loads(shard_set.member(rows, row, "json"))
            assert read_member(path, rows.members["flac"], row, key=key, member="flac")[:4] == b"fLaC"
            assert seen[key]["num_samples"] == rows.num_samples[row]
    assert sorted(seen) == sorted(f"MSP/ü {number}.wav" for number in range(12))
    assert seen["MSP/ü 5.wav"]["transcript"] == "wörds “5”\n"
    assert seen["MSP/ü 5.wav"]["labels"] == {"activation": 0.25, "valence": None, "dominance": 1.0}


def test_splits_give_their_shards_in_the_order_they_are_named(shard_set: ShardSet):
    assert [shard.split for shard in shard_set.shards_of(["Development", "Train", "Development"])] == [
        *["Development"] * sum(shard.split == "Development" for shard in shard_set.manifest.shards),
        *["Train"] * sum(shard.split == "Train" for shard in shard_set.manifest.shards),
    ]
    with pytest.raises(ConfigError, match=r"no split 'Test1' in these shards. Known splits: 'Train', 'Development'"):
        shard_set.shards_of(["Test1"])


def test_a_copy_in_another_process_or_thread_reads_the_same(shard_set: ShardSet):
    name = shard_set.manifest.shards[0].name
    shard_set.rows(name)
    copy = pickle.loads(pickle.dumps(shard_set))
    assert len(pickle.dumps(shard_set)) < 20_000  # rows are not carried along
    assert copy.rows(name).keys == shard_set.rows(name).keys
    names = [shard.name for shard in shard_set.manifest.shards] * 20
    with ThreadPoolExecutor(4) as threads:
        keys = [rows.keys for rows in threads.map(pickle.loads(pickle.dumps(shard_set)).rows, names)]
    assert keys == [shard_set.rows(name).keys for name in names]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_for_itself(shard_set: ShardSet):
    name = shard_set.manifest.shards[0].name
    keys = shard_set.rows(name).keys
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if shard_set.rows(name).keys == keys else 3
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_empty_folder_is_no_shard_set(tmp_path: Path):
    with pytest.raises(MissingShardsError, match=r"no shard set here .* Build one with shards/build.py") as caught:
        open_shard_set(tmp_path)
    assert caught.value.exit_code == 2


def test_a_cut_or_missing_index_is_refused_when_the_set_is_opened(tmp_path: Path):
    shard_set = example_shard_set(tmp_path, count=4)
    size = shard_set.manifest.index_size_bytes
    os.truncate(shard_set.root / "index.arrow", size - 1)
    with pytest.raises(ShardError, match=rf"index.arrow: has {size - 1} bytes, and the manifest states {size}"):
        open_shard_set(shard_set.root)
    (shard_set.root / "index.arrow").unlink()
    with pytest.raises(ShardError, match=r"index.arrow: is missing, and"):
        open_shard_set(shard_set.root)


def test_another_format_version_is_refused(tmp_path: Path):
    shard_set = example_shard_set(tmp_path, count=4)
    newer = dataclasses.replace(shard_set.manifest, format_version=9)
    (shard_set.root / MANIFEST_NAME).write_bytes(newer.to_bytes())
    with pytest.raises(ShardError, match=r"format version 9, and this installation reads 2"):
        open_shard_set(shard_set.root)


def test_damage_to_a_member_is_named_by_shard_and_key(tmp_path: Path):
    shard_set = example_shard_set(tmp_path, count=4)
    shard = shard_set.manifest.shards[0]
    rows, path = shard_set.rows(shard.name), shard_set.path(shard.name)
    places = rows.members["flac"]

    def read() -> bytes:
        return read_member(path, places, 1, key=rows.keys[1], member="flac")

    flip_bit(path, int(places.offset[1]) + 7)
    with pytest.raises(ShardError, match=rf"{shard.name}: flac of '{rows.keys[1]}' is damaged"):
        read()
    path.write_bytes(path.read_bytes()[: int(places.offset[1]) + 7])
    with pytest.raises(ShardError, match=rf"{shard.name}: flac of '{rows.keys[1]}' is cut"):
        read()
    path.unlink()
    with pytest.raises(ShardError, match=rf"{shard.name}: cannot read flac of '{rows.keys[1]}' .No such file"):
        read()


def test_a_plain_set_is_its_own_content(shard_set: ShardSet):
    assert shard_set.content_digest == shard_set.digest


@pytest.mark.integration
def test_reading_the_index_starts_no_thread_that_could_outlive_the_interpreter(shard_set: ShardSet):
    """A thread of Arrow's own pool, met by the end of a training process, made it abort after all was done."""
    program = f"""
import os
from ccts_dist.shards.shard_set import open_shard_set
shards = open_shard_set({str(shard_set.root)!r})
before = len(os.listdir("/proc/self/task"))
for shard in shards.manifest.shards:
    shards.rows(shard.name)
raise SystemExit(len(os.listdir("/proc/self/task")) - before)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
