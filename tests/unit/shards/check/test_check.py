"""The checker: what it is given, what it states, and damage in teacher caches and merged sets.

Damage in shard sets: ``test_damage.py`` and ``test_damaged_index.py``.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ccts_dist.errors import ConfigError, FetchError, MissingShardsError, TeacherError, run_main
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.check.check import check_shard_set
from ccts_dist.shards.check.findings import Finding
from ccts_dist.shards.shard_set import read_shard_set
from ccts_dist.shards.stores.remote import RemoteStore
from ccts_dist.shards.teacher_cache import open_teacher_cache
from ccts_dist.shards.teacher_cache_writer import write_cache_manifest
from ccts_dist.teacher.refit_check import fit_again
from tests.helpers.examples.shard_examples import example_facts, example_shard_set
from tests.helpers.examples.sound_sets import KEYS, SHARD, findings
from tests.helpers.faults import damage


@pytest.fixture
def cache(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / "cache", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def merged(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / "merged", tmp_path / "merged")
    return tmp_path / "merged"


@pytest.mark.parametrize("num_threads", [1, 4])
def test_progress_counts_the_bytes_of_all_tars(root: Path, cache: Path, num_threads: int):
    seen: list[tuple[int, int]] = []
    found = check_shard_set(root, cache, num_threads=num_threads, progress=lambda *count: seen.append(count))
    assert found == []
    size = sum(path.stat().st_size for folder in (root, cache) for path in folder.glob("*.tar"))
    assert sum(count for count, _ in seen) == size
    assert {total for _, total in seen} == {size}
    assert len(seen) == 6


def test_findings_stand_in_the_order_of_the_manifest_whatever_the_threads(root: Path):
    for shard in ("Development-000000.tar", SHARD, "Train-000001.tar"):
        damage.flip_in_member(root, shard, 0, "json")
    one = [str(finding) for finding in check_shard_set(root, num_threads=1)]
    assert [line.split()[0] for line in one] == [shard.name for shard in open_shard_set(root).manifest.shards]
    assert [str(finding) for finding in check_shard_set(root, num_threads=4)] == one


def test_a_finding_is_one_line_of_shard_key_and_what():
    assert str(Finding(shard="a.tar", key="k ü", what="flac is missing")) == "a.tar k ü flac is missing"
    assert str(Finding(shard="a.tar", what="is missing")) == "a.tar - is missing"
    assert str(Finding(shard="a\n.tar", key="\x1b[2J", what="\ud800")) == r"a\n.tar \x1b[2J \ud800"


def test_the_fast_check_opens_no_tar(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    damage.flip_in_member(root, SHARD, 2, "flac")
    assert findings(root, cache, fast=True) == []
    os.truncate(root / SHARD, 30_000)
    damage.lose(cache, "Train-000001.tar")
    damage.flip(root / "index.arrow", 1000)
    found = findings(root, cache, fast=True)
    assert f"{SHARD} - has 30000 bytes, and the manifest states 30720" in found
    assert "Train-000001.tar - is missing" in found
    assert "index.arrow - is stale or damaged: differs from the manifest's SHA-256" in found
    assert not any("cut" in line for line in found)


def test_where_there_is_nothing_to_check_that_is_reported(tmp_path: Path, root: Path):
    with pytest.raises(MissingShardsError, match="no shard set here"):
        check_shard_set(tmp_path / "none")
    with pytest.raises(TeacherError, match="no teacher cache here"):
        check_shard_set(root, tmp_path / "none")
    with pytest.raises(ConfigError, match="run a shell and are refused"):
        check_shard_set("pipe:cat")


def command(*arguments: str | Path) -> int:
    spec = importlib.util.spec_from_file_location(
        "shards_check_command", Path(__file__).parents[4] / "shards" / "check.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return run_main(script.main, [str(argument) for argument in arguments])


def test_the_command_states_sound_and_notes_leftovers_apart(
    root: Path, cache: Path, capsys: pytest.CaptureFixture[str]
):
    damage.leave_over(root)
    shard_set = open_shard_set(root)
    fitted, _ = fit_again(shard_set, open_teacher_cache(cache, shard_set))
    splits = list(shard_set.manifest.splits)
    write_cache_manifest(cache, shard_set, example_facts(), splits=splits, condition=fitted, sums={})
    assert command(root, "--teacher-cache", cache, "--threads", "2") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "note: .building - is left of a build that was interrupted: delete it\n" in printed.err
    assert f"sound: {root}, {cache}\n" in printed.err


def test_the_command_prints_a_line_per_finding_and_gives_one(root: Path, capsys: pytest.CaptureFixture[str]):
    damage.flip_in_member(root, SHARD, 2, "flac")
    damage.lose(root, "rejected.jsonl")
    assert command(root) == 1
    lines = ["rejected.jsonl - is missing", f"{SHARD} {KEYS[2]} flac is damaged (its CRC-32 differs)"]
    assert capsys.readouterr().out.splitlines() == lines
    assert command(root, "--fast") == 1
    assert capsys.readouterr().out.splitlines() == lines[:1]


@pytest.mark.parametrize("arguments", [["none"], ["shards", "--teacher-cache", "none"], ["shards", "--threads", "0"]])
def test_the_command_gives_two_and_one_line_where_there_is_nothing_to_check(
    root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert command(*(root if argument == "shards" else argument for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_a_set_that_is_read_through_an_address_is_checked_alike(
    sound: Path, root: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fetched"))
    assert check_shard_set(f"file://{root}", f"file://{cache}") == []
    assert check_shard_set(f"file://{root}", fast=True) == []
    damage.flip(root / "manifest.json", 40)
    (finding,) = check_shard_set(f"file://{root}", f"file://{cache}")
    assert finding.shard == "manifest.json"


def test_damage_that_a_store_still_has_is_named_by_shard(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fetched"))
    damage.flip_in_member(root, SHARD, 2, "flac")
    damage.lose(root, "Train-000001.tar")
    found = check_shard_set(f"file://{root}")
    assert [finding.shard for finding in found] == [SHARD, "Train-000001.tar"]


def test_a_small_file_that_a_store_lacks_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fetched"))
    damage.lose(root, "rejected.jsonl")
    assert [str(finding) for finding in check_shard_set(f"file://{root}")] == ["rejected.jsonl - is missing"]


def test_a_store_that_stops_answering_is_no_damage(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: object, file: object) -> None:
        raise FetchError("the store does not answer")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fetched"))
    monkeypatch.setattr(RemoteStore, "opened", refuse)
    with pytest.raises(FetchError, match="the store does not answer"):
        check_shard_set(f"file://{root}")


@pytest.mark.parametrize("blessed", [False, True])
def test_a_flipped_bit_in_a_teachers_output_is_named_by_key(root: Path, cache: Path, blessed: bool):
    damage.flip_in_member(cache, SHARD, 1, "teacher.npy")
    if blessed:
        damage.bless(cache)
    assert findings(root, cache) == [f"{SHARD} {KEYS[1]} teacher.npy is damaged (its CRC-32 differs)"]


def swap_members(folder: Path) -> None:
    damage.reorder(folder, SHARD, [1, 0, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda cache: damage.cut_inside(cache, SHARD, 4, "teacher.npy"), f"{SHARD} {KEYS[4]} teacher.npy is cut"),
        (
            lambda cache: damage.cut_between(cache, SHARD, 4, "teacher.npy", end_mark=True),
            f"{SHARD} {KEYS[4]} teacher.npy is missing",
        ),
        (lambda cache: damage.zero_header(cache, SHARD, 3, "teacher.npy"), f"{SHARD} {KEYS[3]} bytes follow a block"),
        (lambda cache: damage.reorder(cache, SHARD, [0, 1, 2, 2, 3, 4, 5]), f"{SHARD} {KEYS[2]} teacher.npy comes tw"),
        (swap_members, f"{SHARD} {KEYS[1]} stands where the index has {KEYS[0]!r}: the utterances are in another"),
        (lambda cache: damage.add_member(cache, SHARD, "a.flac"), f"{SHARD} - member 'a.flac' is foreign: never opene"),
        (lambda cache: damage.compress(cache, SHARD, "xz"), f"{SHARD} - is xz, not a plain tar"),
        (lambda cache: damage.empty(cache, SHARD), f"{SHARD} - is empty (0 bytes)"),
        (lambda cache: damage.change_index(cache, SHARD, "key", {0: "x"}), "of the cache: its keys are not those of"),
        (lambda cache: damage.change_index(cache, SHARD, "teacher.npy.size", {1: -1}), "teacher.npy is stated to lie"),
    ],
)
def test_damage_in_a_cache_that_was_blessed_is_named(root: Path, cache: Path, harm: Callable, words: str):
    harm(cache)
    assert findings(root, cache) != []
    damage.bless(cache)
    assert any(words in line for line in findings(root, cache))


@pytest.mark.parametrize("name", [SHARD, "index.arrow", "condition.json"])
def test_a_file_that_a_cache_lacks_is_named(root: Path, cache: Path, name: str):
    damage.lose(cache, name)
    assert findings(root, cache) == [f"{name} - is missing"]


def test_a_cache_of_other_shards_is_named_with_both_digests(root: Path, cache: Path, tmp_path: Path):
    other = example_shard_set(tmp_path / "other", count=8)
    found = findings(other.root, cache)
    digests = f"{read_shard_set(root).digest[:12]}, and this one is {other.digest[:12]}"
    assert f"manifest.json - of the cache: was made for shard set {digests}" in found
    assert f"{SHARD} - of the cache: was made from another shard" in found


def test_the_cache_of_a_corpus_that_has_grown_lacks_what_is_new(root: Path, cache: Path):
    def forget(document: dict) -> None:
        document["shards"].pop(1)

    damage.edit_manifest(cache, forget)
    assert "manifest.json - of the cache: lacks Train-000001.tar" in findings(root, cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": DIMENSIONS[:2]}, "teacher.npy holds float32[8], must be float32[7]"),
        ({"targets": []}, "names no target of the teacher, or one twice"),
        ({"embedding_size": 6}, "has 5 numbers for embedding_mean, and embedding_size is 6"),
        (
            {"embedding_deviation": [1.0, 1.0, 1.0, 1.0, -1.0]},
            "has a number for embedding_deviation that cannot be one",
        ),
        (
            {"condition_sha256": "0" * 64},
            "condition.json - is not the one that the manifest names: its SHA-256 differs",
        ),
    ],
)
def test_a_cache_that_was_blessed_with_wrong_facts_is_named(root: Path, cache: Path, change: dict, words: str):
    damage.edit_manifest(cache, lambda document: document["teacher"].update(change))
    assert any(words in line for line in findings(root, cache))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ["valence"]}, "is of targets valence, and the teacher predicts activation, valence, dominance"),
        ({"w": [1.0]}, "has [1.0] for w: one finite number per target must be there"),
        ({"splits": ["Test"]}, "was fitted on Test, and the splits here are Train, Development"),
        ({"splits": []}, "was fitted on none"),
        ({"b": "x"}, "condition.b must be a list"),
    ],
)
def test_a_condition_that_was_blessed_and_cannot_be_is_named(root: Path, cache: Path, change: dict, words: str):
    damage.edit_condition(cache, lambda document: document["condition"].update(change))
    assert findings(root, cache)[0].startswith("condition.json - is not the one that the manifest names")
    damage.bless_condition(cache)
    assert any(line.startswith("condition.json - ") and words in line for line in findings(root, cache))


def test_a_flipped_bit_anywhere_in_a_condition_or_a_manifest_of_a_cache_is_found(root: Path, cache: Path):
    for name in ("condition.json", "manifest.json"):
        whole = (cache / name).read_bytes()
        for at in range(0, len(whole), len(whole) // 12):
            damage.flip(cache / name, at, bit=at % 7)
            assert [finding.shard for finding in check_shard_set(root, cache)] == [name]
        (cache / name).write_bytes(whole)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (8,), }",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (8888888888888,), }",
        b"\x93NUMPY\x01\x00v\x00(((((((((((((((((((((((((((((",
        b"",
    ],
)
def test_a_teachers_output_that_was_blessed_and_is_no_plain_array_is_named(root: Path, cache: Path, payload: bytes):
    damage.replace_payload(cache, SHARD, 0, "teacher.npy", payload)
    damage.bless_crc(cache, SHARD)
    assert findings(root, cache) == [f"{SHARD} {KEYS[0]} teacher.npy is no float32[8] as NumPy writes it"]


def test_a_teachers_output_that_was_blessed_and_is_not_finite_is_named(root: Path, cache: Path):
    found = damage.member_of(cache, SHARD, 0, "teacher.npy")
    damage.overwrite(cache / SHARD, found.offset + found.size - 4, np.float32("nan").tobytes())
    damage.bless_crc(cache, SHARD)
    assert findings(root, cache) == [f"{SHARD} {KEYS[0]} teacher.npy holds numbers that are not finite"]


@pytest.mark.parametrize("member", ["flac", "json", "teacher.npy"])
def test_a_flipped_bit_in_a_merged_set_is_named_by_key(merged: Path, member: str):
    damage.flip_in_member(merged, SHARD, 2, member)
    assert findings(merged) == [f"{SHARD} {KEYS[2]} {member} is damaged (its CRC-32 differs)"]


def test_a_merged_set_without_its_condition_is_named(merged: Path):
    damage.lose(merged, "condition.json")
    assert findings(merged) == ["condition.json - is missing"]


def test_a_member_of_a_merged_set_that_is_missing_or_out_of_order_is_named(merged: Path):
    damage.reorder(merged, SHARD, [0, 2, 1, *range(3, 17)])
    found = findings(merged)
    words = "its members stand as flac, teacher.npy, json, and must stand as flac, json, teacher.npy"
    assert f"{SHARD} {KEYS[0]} {words}" in found
    assert f"{SHARD} {KEYS[5]} teacher.npy is missing" in found
