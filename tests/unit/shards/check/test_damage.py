"""Damage of every kind in tars and beside them, planted in a set that is otherwise sound, and named by the checker.

Each kind twice where that makes sense: as it happens, and "blessed", when the manifest was made to agree with it.
Indexes, manifests and contents: ``test_damaged_index.py``.
"""

import os
import tarfile
from pathlib import Path

import pytest

from ccts_dist.limits import LIMITS
from ccts_dist.shards.check.check import check_shard_set
from tests.helpers.examples.sound_sets import KEYS, SHARD, findings
from tests.helpers.faults import damage

WHOLE = f"{SHARD} - differs from the manifest's SHA-256"


def test_the_examples_are_sound_in_every_way(sound: Path):
    assert findings(sound / "shards", sound / "cache") == []
    assert findings(sound / "shards", sound / "cache", fast=True) == []
    assert findings(sound / "merged") == []
    assert findings(sound / "merged", sound / "cache") == []


@pytest.mark.parametrize("member", ["flac", "json"])
@pytest.mark.parametrize("blessed", [False, True])
def test_a_flipped_bit_in_a_payload_is_named_by_key(root: Path, member: str, blessed: bool):
    damage.flip_in_member(root, SHARD, 2, member)
    if blessed:
        damage.bless(root)
    assert findings(root) == [f"{SHARD} {KEYS[2]} {member} is damaged (its CRC-32 differs)"]


@pytest.mark.parametrize("blessed", [False, True])
def test_a_flipped_bit_in_a_header_is_named_by_byte_and_key(root: Path, blessed: bool):
    at = damage.member_of(root, SHARD, 2, "json").offset - 512
    damage.flip_in_header(root, SHARD, 2, "json")
    if blessed:
        damage.bless(root)
    assert findings(root) == [f"{SHARD} {KEYS[2]} no member header at byte {at}: the tar is damaged (at its json)"]


def test_a_flipped_bit_in_padding_is_found_by_the_digest_of_all(root: Path):
    found = damage.member_of(root, SHARD, 2, "json")
    damage.flip(root / SHARD, found.offset + found.size)
    assert findings(root) == [WHOLE]
    damage.bless(root)
    assert findings(root) == []  # nobody's byte


def test_a_flipped_bit_after_the_end_mark_is_found(root: Path):
    damage.flip(root / SHARD, (root / SHARD).stat().st_size - 1)
    damage.bless(root)
    (finding,) = findings(root)
    assert finding.startswith(f"{SHARD} - bytes follow a block of zeros")


@pytest.mark.parametrize("blessed", [False, True])
def test_a_block_of_zeros_in_audio_is_named_by_byte_and_key(root: Path, blessed: bool):
    at = damage.zero_in_member(root, SHARD, 3, "flac")
    if blessed:
        damage.bless(root)
    (finding,) = findings(root)
    assert finding.startswith(f"{SHARD} {KEYS[3]} flac is damaged (its CRC-32 differs; zeros at byte ")
    assert at - 8 < int(finding.removesuffix(")").rsplit(" ", 1)[1]) <= at


@pytest.mark.parametrize("blessed", [False, True])
def test_a_block_of_zeros_in_a_headers_place_is_named_by_byte_and_key(root: Path, blessed: bool):
    """WebDataset reads such a tar without a word, and stops early."""
    at = damage.zero_header(root, SHARD, 3, "flac")
    if blessed:
        damage.bless(root)
    (finding,) = findings(root)
    assert finding.startswith(f"{SHARD} {KEYS[3]} bytes follow a block of zeros at byte {at} (")


@pytest.mark.parametrize("blessed", [False, True])
def test_a_cut_inside_a_member_names_all_that_is_lost(root: Path, blessed: bool):
    damage.cut_inside(root, SHARD, 4, "flac")
    if blessed:
        damage.bless(root)
    found = findings(root)
    assert f"{SHARD} {KEYS[4]} flac is cut" in found
    assert found[-4:] == [f"{SHARD} {key} {member} is cut" for key in KEYS[4:] for member in ("flac", "json")]
    assert any(line.startswith(f"{SHARD} {KEYS[4]} cut inside member ") for line in found)
    assert not any(key in line for key in KEYS[:4] for line in found)


@pytest.mark.parametrize("blessed", [False, True])
def test_a_cut_on_a_member_boundary_names_all_that_is_lost(root: Path, blessed: bool):
    damage.cut_between(root, SHARD, 4, "flac", end_mark=False)
    size = (root / SHARD).stat().st_size
    if blessed:
        damage.bless(root)
    found = findings(root)
    assert f"{SHARD} {KEYS[4]} ends at byte {size} without an end mark: it was cut (at its flac)" in found
    assert found[-4:] == [f"{SHARD} {key} {member} is cut" for key in KEYS[4:] for member in ("flac", "json")]


@pytest.mark.parametrize("blessed", [False, True])
def test_a_cut_with_a_new_end_mark_names_all_that_is_lost(root: Path, blessed: bool):
    damage.cut_between(root, SHARD, 4, "json", end_mark=True)
    if blessed:
        damage.bless(root)
    missing = [f"{SHARD} {key} {member} is missing" for key in KEYS[4:] for member in ("flac", "json")][1:]
    assert [line for line in findings(root) if line.endswith("is missing")] == missing


@pytest.mark.parametrize("blessed", [False, True])
def test_a_missing_member_is_named(root: Path, blessed: bool):
    damage.reorder(root, SHARD, range(11))
    if blessed:
        damage.bless(root)
    assert findings(root) == [f"{SHARD} {KEYS[5]} json is missing"]


@pytest.mark.parametrize("blessed", [False, True])
def test_a_member_that_comes_twice_is_named(root: Path, blessed: bool):
    damage.reorder(root, SHARD, [*range(12), 3])
    if blessed:
        damage.bless(root)
    assert findings(root) == [f"{SHARD} {KEYS[1]} json comes twice"]


@pytest.mark.parametrize("blessed", [False, True])
def test_members_of_an_utterance_in_another_order_are_named(root: Path, blessed: bool):
    damage.reorder(root, SHARD, [0, 1, 3, 2, *range(4, 12)])
    if blessed:
        damage.bless(root)
    assert findings(root) == [
        f"{SHARD} {KEYS[1]} its members stand as json, flac, and must stand as flac, json",
        f"{SHARD} {KEYS[1]} flac is not where the index states, nor are 1 other members: it is stale",
    ]


@pytest.mark.parametrize("blessed", [False, True])
def test_members_that_do_not_stand_together_are_named(root: Path, blessed: bool):
    damage.reorder(root, SHARD, [0, 2, 3, 1, *range(4, 12)])
    if blessed:
        damage.bless(root)
    assert f"{SHARD} {KEYS[0]} its members do not stand one after the other" in findings(root)


@pytest.mark.parametrize("blessed", [False, True])
def test_utterances_in_another_order_are_named(root: Path, blessed: bool):
    damage.reorder(root, SHARD, [*range(4), 6, 7, 4, 5, *range(8, 12)])
    if blessed:
        damage.bless(root)
    words = f"stands where the index has {KEYS[2]!r}: the utterances are in another order"
    assert f"{SHARD} {KEYS[3]} {words}" in findings(root)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../out.flac", tarfile.REGTYPE, "leads out of its folder"),
        ("a/../../out.flac", tarfile.REGTYPE, "leads out of its folder"),
        ("/etc/out.flac", tarfile.REGTYPE, "leads out of its folder"),
        ("a.flac", tarfile.SYMTYPE, "is a symbolic link"),
        ("a.flac", tarfile.LNKTYPE, "is a hard link"),
        ("a.flac", tarfile.CHRTYPE, "is a character device"),
        ("a.flac", tarfile.BLKTYPE, "is a block device"),
        ("a.flac", tarfile.FIFOTYPE, "is a pipe"),
        ("a.flac", tarfile.DIRTYPE, "is a folder"),
        ("a.flac", b"Z", "is a member of unknown type b'Z'"),
        ("a.pickle", tarfile.REGTYPE, "is foreign"),
        ("a.pyd", tarfile.REGTYPE, "is foreign"),
        ("a.pth", tarfile.REGTYPE, "is foreign"),
        ("a.teacher.npy", tarfile.REGTYPE, "is foreign"),
        ("README", tarfile.REGTYPE, "is foreign"),
        ("a b.flac", tarfile.REGTYPE, "has no escaped key"),
        ("a/b.flac", tarfile.REGTYPE, "has no escaped key"),
        (".flac", tarfile.REGTYPE, None),
    ],
)
@pytest.mark.parametrize("blessed", [False, True])
def test_a_foreign_member_is_named_and_never_opened(
    root: Path, name: str, kind: bytes, words: str | None, blessed: bool
):
    damage.add_member(root, SHARD, name, kind)
    if blessed:
        damage.bless(root)
    (finding,) = findings(root)
    if words is None:
        assert finding == f"{SHARD} - flac is not in the index"
    else:
        assert finding.removesuffix(": never opened") == f"{SHARD} - member {finding.split(chr(39))[1]!r} {words}"
    damage.lose(root, "index.arrow")
    assert words is None or finding in findings(root)  # without an index too


def test_very_many_foreign_members_are_counted(root: Path):
    foreign = [(tarfile.TarInfo(f"{number}.txt"), b"") for number in range(130)]
    damage.write_members(root / SHARD, [*damage.members_of(root / SHARD), *foreign])
    found = findings(root)
    assert len(found) == 101
    assert found[-1] == f"{SHARD} - 30 more foreign members: never opened"


@pytest.mark.parametrize("kind", damage.COMPRESSORS)
@pytest.mark.parametrize("blessed", [False, True])
def test_a_compressed_tar_is_named_as_what_it_is(root: Path, kind: str, blessed: bool):
    damage.compress(root, SHARD, kind)
    if blessed:
        damage.bless(root)
    assert f"{SHARD} - is {kind}, not a plain tar" in findings(root)


@pytest.mark.parametrize("blessed", [False, True])
def test_an_empty_file_is_named(root: Path, blessed: bool):
    damage.empty(root, SHARD)
    if blessed:
        damage.bless(root)
    assert f"{SHARD} - is empty (0 bytes)" in findings(root)


@pytest.mark.parametrize("blessed", [False, True])
def test_a_file_of_only_zeros_is_named(root: Path, blessed: bool):
    size = (root / SHARD).stat().st_size
    damage.only_zeros(root, SHARD)
    if blessed:
        damage.bless(root)
    assert findings(root) == [f"{SHARD} - holds nothing but zeros ({size} bytes)"]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (b"77777777777\0", "has an absurd size field: 8589934591 bytes"),
        (b"\x80" + b"\x00" * 4 + b"\x10" + b"\x00" * 6, "has an absurd size field: 4503599627370496 bytes"),
        (b"\xff" * 12, "has a negative size, -1"),
        (b"-0000000012\0", "has a size field that is no number, b'-0000000012"),
        (b"junk        ", "has a size field that is no number"),
        (b"00000200000\0", "cut inside member"),
    ],
)
@pytest.mark.parametrize("blessed", [False, True])
def test_an_absurd_size_field_is_named_and_not_believed(root: Path, field: bytes, words: str, blessed: bool):
    damage.set_size_field(root, SHARD, 2, "flac", field)
    if blessed:
        damage.bless(root)
    (finding,) = findings(root)
    assert finding.startswith(f"{SHARD} {KEYS[2]} ")
    assert words in finding


@pytest.mark.parametrize("size", ["-1", "999999999999999999", "1" * 30, "many"])
def test_an_absurd_size_in_an_extended_header_is_named_and_not_believed(root: Path, size: str):
    damage.add_extended_header(root, SHARD, 4, {"size": size, "path": "a.flac"})
    assert any("a.flac" in line and (size[:9] in line or "size" in line) for line in findings(root))


@pytest.mark.parametrize("name", [SHARD, "index.arrow", "rejected.jsonl"])
def test_a_missing_file_is_named(root: Path, name: str):
    damage.lose(root, name)
    assert findings(root) == [f"{name} - is missing"]
    assert findings(root, fast=True) == [f"{name} - is missing"]


@pytest.mark.parametrize("name", [SHARD, "index.arrow", "rejected.jsonl", "manifest.json"])
def test_what_is_no_regular_file_is_named_and_not_opened(root: Path, name: str):
    """A pipe would be waited for, for ever."""
    damage.lose(root, name)
    os.mkfifo(root / name)
    assert f"{name} - is no regular file" in findings(root)


def test_a_tar_that_no_manifest_names_is_named(root: Path):
    damage.copy_shard(root, SHARD, "Train-000099.tar")
    assert findings(root) == ["Train-000099.tar - is not in the manifest"]


def test_what_an_interrupted_build_left_is_reported_and_is_no_damage(root: Path):
    names = damage.leave_over(root)
    found = check_shard_set(root)
    assert [finding.shard for finding in found] == names
    assert all(finding.leftover and "interrupted: delete it" in finding.what for finding in found)


def test_an_index_of_format_version_1_is_reported_and_is_no_damage(root: Path):
    (root / "index.parquet").touch()
    (finding,) = check_shard_set(root)
    assert str(finding) == "index.parquet - is an index of format version 1: delete it"
    assert finding.leftover


def test_a_manifest_larger_than_any_is_named_and_not_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    size = (root / "manifest.json").stat().st_size
    monkeypatch.setitem(LIMITS, "manifest.json", size - 1)  # type: ignore[arg-type]
    assert findings(root) == [f"manifest.json - has {size} bytes, more than any manifest"]


def test_a_finding_is_one_line_whatever_the_names_in_a_tar_are(root: Path):
    damage.add_member(root, SHARD, "a\n\x1b[31m" + "b" * 5000 + ".txt")
    (finding,) = findings(root)
    assert finding.isprintable()
    assert len(finding) < 400


def test_a_file_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.open

    def refuse(path: Path, *flags: int, **named: int) -> int:
        if str(path).endswith(".tar"):
            raise PermissionError(13, "Permission denied")
        return real(path, *flags, **named)

    monkeypatch.setattr("os.open", refuse)
    found = findings(root)
    assert len([line for line in found if "Permission denied" in line]) == 3
