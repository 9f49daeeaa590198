"""The checker: each kind of damage is found, and named by shard and key."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError, MissingShardsError, TeacherError
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.check import check_shard_set
from ccts_dist.shards.documents import document_bytes
from ccts_dist.shards.findings import Finding
from ccts_dist.shards.read import read_shard_set
from ccts_dist.shards.schema import escape_key
from ccts_dist.shards.tars import crc32_of
from ccts_dist.shards.teacher_format import read_cache_manifest
from tests.damage import bless, edit_manifest, index_tables, members_of, set_values, write_index, write_members
from tests.shard_examples import example_cache, example_shard_set, flip_bit

SHARD = "Train-000000.tar"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards`` and ``cache``, to be copied."""
    folder = tmp_path_factory.mktemp("sound")
    example_cache(folder / "cache", example_shard_set(folder))
    return folder


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / "shards", tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def cache(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / "cache", tmp_path / "cache")
    return tmp_path / "cache"


def lines(root: Path, teacher: Path | None = None) -> list[str]:
    return [str(finding) for finding in check_shard_set(root, teacher)]


def test_a_sound_set_and_cache_have_no_findings(root: Path, cache: Path):
    seen: list[int] = []
    assert check_shard_set(root, cache, progress=seen.append) == []
    assert sum(seen) == len(list(root.glob("*.tar"))) + len(list(cache.glob("*.tar")))


def test_a_finding_is_one_line_of_shard_key_and_what():
    assert str(Finding(shard="a.tar", key="k", what="flac is missing")) == "a.tar k flac is missing"
    assert str(Finding(shard="a.tar", what="is missing")) == "a.tar - is missing"


@pytest.mark.parametrize("member", ["flac", "json"])
def test_one_flipped_bit_is_named_by_shard_and_key_and_by_nothing_else(root: Path, member: str):
    rows = open_shard_set(root).rows(SHARD)
    flip_bit(root / SHARD, int(rows.members[member].offset[2]) + 3)
    assert lines(root) == [f"{SHARD} {rows.keys[2]} {member} is damaged (its CRC-32 differs)"]


def test_a_flipped_bit_in_a_header_or_in_padding_is_found(root: Path):
    rows = open_shard_set(root).rows(SHARD)
    flip_bit(root / SHARD, int(rows.members["json"].offset[0] + rows.members["json"].size[0]))  # nobody's byte
    assert lines(root) == [f"{SHARD} - differs from the manifest's SHA-256"]
    flip_bit(root / SHARD, int(rows.members["flac"].offset[1]) - 500)
    (finding,) = lines(root)
    assert finding.startswith(f"{SHARD} - no member header at byte {int(rows.members['flac'].offset[1]) - 512}")


def test_a_missing_shard_an_extra_one_and_a_wrong_size_are_found(root: Path):
    shutil.copy(root / SHARD, root / "extra.tar")
    (root / "Train-000001.tar").unlink()
    with open(root / SHARD, "ab") as file:
        file.write(bytes(512))
    size = (root / SHARD).stat().st_size
    assert lines(root) == [
        "extra.tar - is not in the manifest",
        f"{SHARD} - has {size} bytes, and the manifest says {size - 512}",
        "Train-000001.tar - is missing",
    ]


def test_a_cut_tar_names_the_utterances_that_were_lost(root: Path):
    rows = open_shard_set(root).rows(SHARD)
    data = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(data[: int(rows.members["flac"].offset[1]) + 100])
    found = lines(root)
    assert found[0].startswith(f"{SHARD} - cut inside member '{escape_key(rows.keys[1])}.flac'")
    assert found[1:] == [f"{SHARD} {key} {member} is cut" for key in rows.keys[1:] for member in ("flac", "json")]


def test_a_stale_index_is_found(root: Path):
    """One label, one speaker, one length changed in the index, and the manifest made to agree."""
    shard_set = open_shard_set(root)
    keys, samples = shard_set.rows(SHARD).keys, int(shard_set.rows(SHARD).num_samples[1])
    tables = index_tables(root)
    table = set_values(tables[SHARD], "label.valence", {0: 0.75})
    table = set_values(table, "label.dominance", {1: None})
    table = set_values(table, "num_samples", {1: samples + 1})
    write_index(root, tables | {SHARD: set_values(table, "speaker", {0: "other"})})
    assert "index.arrow - is stale or damaged: its SHA-256 is not the manifest's" in lines(root)
    bless(root)
    total = shard_set.manifest.shards[0].num_samples
    assert lines(root) == [
        f"{SHARD} - has {total + 1} samples in the index, and the manifest says {total}",
        f"{SHARD} {keys[0]} the index is stale: speaker is 'other' there and 'speaker 0' in json",
        f"{SHARD} {keys[0]} the index is stale: label 'valence' is 0.75 there and 0.5 in json",
        f"{SHARD} {keys[1]} the index is stale: label 'dominance' is nan there and 1.0 in json",
        f"{SHARD} {keys[1]} flac holds {samples} samples at 16000 Hz, and must hold {samples + 1} at 16000 Hz",
    ]


def test_an_index_of_fewer_rows_or_none_at_all_is_found(root: Path):
    write_index(root, {shard: table.slice(1) for shard, table in index_tables(root).items()})
    bless(root)
    assert any("rows in" in line and line.startswith(SHARD) for line in lines(root))
    (root / "index.arrow").unlink()
    found = lines(root)
    assert found[0] == "index.arrow - is missing"
    assert all("cannot read its rows" in line for line in found[1:])


def test_an_index_without_a_member_is_found(root: Path):
    columns = ["json.offset", "json.size", "json.crc32"]
    write_index(root, {shard: table.drop_columns(columns) for shard, table in index_tables(root).items()})
    bless(root)
    assert lines(root)[0] == f"{SHARD} - has members flac in the index, and the manifest says otherwise"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../out.flac", tarfile.REGTYPE, "member '../out.flac' leads out of its folder: never opened"),
        ("/etc/out.flac", tarfile.REGTYPE, "member '/etc/out.flac' leads out of its folder: never opened"),
        ("a.flac", tarfile.SYMTYPE, "member 'a.flac' is a symbolic link: never opened"),
        ("a.flac", tarfile.LNKTYPE, "member 'a.flac' is a hard link: never opened"),
        ("a.pickle", tarfile.REGTYPE, "member 'a.pickle' is foreign: never opened"),
        ("a.pyd", tarfile.REGTYPE, "member 'a.pyd' is foreign: never opened"),
        ("a b.flac", tarfile.REGTYPE, "member 'a b.flac' has no escaped key: never opened"),
        ("a/b.flac", tarfile.REGTYPE, "member 'a/b.flac' has no escaped key: never opened"),
    ],
)
def test_foreign_members_are_reported_and_never_opened(root: Path, name: str, kind: bytes, words: str):
    foreign = tarfile.TarInfo(name)
    foreign.type, foreign.linkname = kind, "/etc/passwd"
    write_members(root / SHARD, [*members_of(root / SHARD), (foreign, b"")])
    bless(root)
    assert f"{SHARD} - {words}" in lines(root)
    (root / "index.arrow").unlink()
    assert f"{SHARD} - {words}" in lines(root)  # without an index too


def test_missing_doubled_and_unlisted_members_are_named_by_key(root: Path):
    keys = open_shard_set(root).rows(SHARD).keys
    members = members_of(root / SHARD)
    new = tarfile.TarInfo("new.json")
    write_members(root / SHARD, [*members[:-1], members[0], (new, b"")])
    bless(root)
    assert lines(root) == [
        f"{SHARD} {keys[0]} flac comes twice",
        f"{SHARD} new json is not in the index",
        f"{SHARD} {keys[-1]} json is missing",
    ]
    write_members(root / SHARD, members[1:])
    bless(root)
    assert lines(root) == [
        f"{SHARD} {keys[0]} flac is missing",
        f"{SHARD} {keys[0]} json is not where the index says, nor are {2 * len(keys) - 2} other members: "
        "the index is stale",
    ]


def replace_json(root: Path, data: bytes) -> str:
    """Put other JSON of the same length into a shard, and make index and manifest agree; gives its key."""
    rows = open_shard_set(root).rows(SHARD)
    places = rows.members["json"]
    whole = bytearray((root / SHARD).read_bytes())
    offset, size = int(places.offset[0]), int(places.size[0])
    whole[offset : offset + size] = data.ljust(size)
    (root / SHARD).write_bytes(whole)
    tables = index_tables(root)
    write_index(root, tables | {SHARD: set_values(tables[SHARD], "json.crc32", {0: crc32_of(data.ljust(size))})})
    bless(root)
    return rows.keys[0]


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"labels": 3, "label_variance": {}}'])
def test_json_that_is_no_utterance_is_found(root: Path, data: bytes):
    key = replace_json(root, data)
    assert lines(root) == [f"{SHARD} {key} json is not an utterance's"]


def test_a_wrong_manifest_is_found(root: Path):
    manifest = json.loads((root / "manifest.json").read_bytes())
    manifest["splits"]["Train"]["num_utterances"] += 1
    manifest["splits"]["Ghost"] = {"num_utterances": 0, "hours": 0.0}
    manifest["counts"]["rejected"] = 4
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert lines(root) == [
        "manifest.json - lists splits ['Development', 'Ghost', 'Train'], and its shards are of "
        "['Development', 'Train']",
        "manifest.json - says that split 'Train' has 10 utterances and 0.0003 hours, and its shards add up to 9 "
        "and 0.0003",
        "rejected.jsonl - has 0 lines, and the manifest counts 4",
    ]
    (root / "rejected.jsonl").unlink()
    assert lines(root)[-1] == "rejected.jsonl - is missing"
    (root / "manifest.json").write_text("{}")
    assert lines(root)[0].startswith("manifest.json - format version None, and this installation reads 2.")


def test_where_there_is_nothing_to_check_that_is_said(tmp_path: Path, root: Path):
    with pytest.raises(MissingShardsError, match="no shard set here"):
        check_shard_set(tmp_path / "none")
    with pytest.raises(TeacherError, match="no teacher cache here"):
        check_shard_set(root, tmp_path / "none")
    with pytest.raises(ConfigError, match="pipe: URLs run a shell"):
        check_shard_set("pipe:cat")


def test_damage_in_a_cache_is_named_by_shard_and_key(root: Path, cache: Path):
    path = cache / SHARD
    with tarfile.open(path) as opened:
        member = opened.getmembers()[1]
    key = open_shard_set(root).rows(SHARD).keys[1]
    flip_bit(path, member.offset_data + member.size - 1)
    assert lines(root, cache) == [f"{SHARD} {key} teacher.npy is damaged (its CRC-32 differs)"]
    path.unlink()
    assert lines(root, cache) == [f"{SHARD} - is missing"]


def test_a_cache_of_other_shards_or_with_other_files_is_found(root: Path, cache: Path):
    manifest, _ = read_cache_manifest(cache)
    shards = (dataclasses.replace(manifest.shards[0], source_sha256="0" * 64), *manifest.shards[1:])
    changed = dataclasses.replace(manifest, shard_set_digest="0" * 64, shards=shards)
    (cache / "manifest.json").write_bytes(document_bytes(changed))
    (cache / "condition.json").write_text("{}")
    flip_bit(cache / "index.arrow", 30)
    digest = read_shard_set(root).digest
    found = lines(root, cache)
    assert f"manifest.json - of the cache: was made for shard set 000000000000, and this one is {digest[:12]}" in found
    assert "index.arrow - is stale or damaged: its SHA-256 is not the manifest's" in found
    assert any(line.startswith("condition.json - is not the one that the manifest names") for line in found)
    assert f"{SHARD} - of the cache: was made from another shard" in found
    (cache / "manifest.json").write_text("{}")
    assert lines(root, cache)[0].startswith("manifest.json - of the cache: format version None")


def test_a_cache_whose_keys_or_numbers_are_not_the_shards_is_found(root: Path, cache: Path):
    tables = index_tables(cache)
    write_index(cache, tables | {SHARD: tables[SHARD].take(list(range(tables[SHARD].num_rows))[::-1])})
    bless(cache)
    edit_manifest(cache, lambda document: document["teacher"].update(targets=DIMENSIONS[:2]))
    found = lines(root, cache)
    assert f"{SHARD} - of the cache: its keys are not those of the shard" in found
    assert any(line.endswith("teacher.npy holds float32[8], must be float32[7]") for line in found)
