"""Damage in indexes, manifests, small files and the contents of members, named by the checker.

Most of it "blessed": the manifest was made to agree, so that no digest reports. Tars: ``test_damage.py``.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.limits import LIMITS
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.check.index import IndexFile
from tests.helpers.examples.sound_sets import KEYS, SHARD, build_other_shards, build_shards, findings
from tests.helpers.faults import damage

NOISE = np.random.default_rng(0).integers(-9_000, 9_000, 20_000, dtype=np.int16)
"""Of several frames."""


@pytest.mark.parametrize("blessed", [False, True])
def test_rows_of_another_build_are_named(root: Path, sound: Path, tmp_path: Path, blessed: bool):
    """Same keys and names, other audio: what a set that was built again and half copied looks like."""
    build_other_shards(tmp_path / "again", tmp_path / "other")
    damage.take_from(root, tmp_path / "again", "index.arrow")
    if blessed:
        damage.bless(root)
    found = findings(root)
    assert any(line.startswith(f"{SHARD} {KEYS[0]} ") for line in found) == blessed
    assert ("index.arrow - is stale or damaged: differs from the manifest's SHA-256" in found) != blessed
    if not blessed:
        assert sum("its rows in index.arrow are not those that the manifest names" in line for line in found) == 3


def test_an_index_that_was_blessed_with_other_values_is_named_by_key_and_column(root: Path):
    damage.change_index(root, SHARD, "label.valence", {0: 0.75})
    damage.change_index(root, SHARD, "speaker", {1: None})
    damage.change_index(root, SHARD, "category", {2: "Sad"})
    damage.change_index(root, SHARD, "num_samples", {3: 17})
    damage.change_index(root, SHARD, "flac.crc32", {4: 17})
    damage.bless(root)
    total = open_shard_set(root).manifest.shards[0].num_samples
    samples = 1600 + 40 * 4
    assert findings(root) == [
        "manifest.json - lists categories ['Happy']: ['Sad'] are missing there, and [] do not occur",
        f"{SHARD} - has {total - samples + 17} samples in the index, and the manifest states {total}",
        f"{SHARD} {KEYS[0]} the index is stale: label 'valence' is 0.75 there and 0.5 in json",
        f"{SHARD} {KEYS[1]} the index is stale: speaker is None there and 'speaker 1' in json",
        f"{SHARD} {KEYS[2]} the index is stale: category is 'Sad' there and 'Happy' in json",
        f"{SHARD} {KEYS[3]} flac holds {samples} samples at 16000 Hz, and must hold 17 at 16000 Hz",
        f"{SHARD} {KEYS[3]} the index is stale: num_samples is 17 there and {samples} in json",
        f"{SHARD} {KEYS[4]} flac is damaged (its CRC-32 differs)",
    ]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("flac.offset", -512, "flac is stated to lie at byte -512 to"),
        ("flac.offset", 1 << 60, "flac is stated to lie at byte 1152921504606846976 to"),
        ("flac.offset", 513, "flac is stated to lie at byte 513 to"),
        ("flac.size", -1, "flac is stated to lie at byte"),
        ("flac.size", (1 << 63) - 1, "flac is stated to lie at byte"),
        ("json.offset", 0, "json is stated to lie at byte 0 to"),
        ("key", "", "has an empty key, or a control character in it"),
        ("key", "a\nb", "has an empty key, or a control character in it"),
        ("key", KEYS[0], "comes twice in the index"),
        ("label.valence", 1.5, "the index has 1.5 for label 'valence', which is not on 0..1"),
        ("num_samples", -4, "the index states that it has -4 samples"),
    ],
)
def test_absurd_rows_are_named_without_reading_any_tar(root: Path, column: str, value: object, words: str):
    damage.change_index(root, SHARD, column, {1: value})
    damage.bless(root)
    assert any(words in line and line.startswith(SHARD) for line in findings(root, fast=True))
    assert any(words in line for line in findings(root))


@pytest.mark.parametrize("column", ["key", "num_samples", "flac.offset", "json.size", "flac.crc32"])
def test_rows_without_a_value_are_named(root: Path, column: str):
    damage.change_index(root, SHARD, column, {1: None})
    damage.bless(root)
    assert f"{SHARD} - its rows in index.arrow have no {column} everywhere" in findings(root)


def test_a_key_in_two_shards_is_named(root: Path):
    damage.change_index(root, "Train-000001.tar", "key", {2: KEYS[3]})
    damage.bless(root)
    assert f"Train-000001.tar {KEYS[3]} comes twice in the set: in {SHARD} too" in findings(root, fast=True)


def test_a_flipped_bit_anywhere_in_the_index_is_found(root: Path):
    whole = (root / "index.arrow").read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        damage.flip(root / "index.arrow", at, bit=at % 8)
        assert "index.arrow - is stale or damaged: differs from the manifest's SHA-256" in findings(root, fast=True)
        (root / "index.arrow").write_bytes(whole)


def test_a_flipped_bit_in_a_batch_is_named_by_shard(root: Path):
    place = open_shard_set(root).manifest.shards[1].index
    damage.flip(root / "index.arrow", place.offset + place.size // 2)
    assert findings(root, fast=True) == [
        "index.arrow - is stale or damaged: differs from the manifest's SHA-256",
        "Train-000001.tar - its rows in index.arrow are not those that the manifest names: it is stale or damaged",
    ]


def shift(index: dict) -> None:
    index["offset"] += 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shards: shards[1].update(index=shards[0]["index"]), "Train-000001.tar - its rows are stated to lie at"),
        (lambda shards: shards[1]["index"].update(size=1 << 62), "Train-000001.tar - its rows are stated to lie at"),
        (
            lambda shards: shards[1]["index"].update(offset=-1),
            "Train-000001.tar - its rows are stated to lie at byte -1",
        ),
        (lambda shards: shift(shards[1]["index"]), "do not follow those before them, which end at byte"),
        (lambda shards: shards.reverse(), "overlap those before them"),
        (lambda shards: shards.pop(), "its footer names 3 batches of rows, and the manifest 2 shards"),
        (lambda shards: shards[0]["index"].update(offset=0), f"{SHARD} - its rows are stated to lie at byte 0"),
        (lambda shards: shards[0]["index"].update(offset=200), "index.arrow - is no Arrow file"),
    ],
)
def test_batches_that_lie_elsewhere_than_the_manifest_states_are_named(root: Path, change: Callable, words: str):
    damage.edit_manifest(root, lambda document: change(document["shards"]))
    assert any(words in line for line in findings(root, fast=True))


def test_the_index_of_no_shards_has_no_faults(root: Path):
    with open(root / "index.arrow", "rb") as file:
        assert list(IndexFile(file, [], {}).findings()) == []


def test_a_column_that_comes_twice_is_named(root: Path):
    tables = damage.index_tables(root)
    damage.write_index(root, {shard: table.append_column("key", table["key"]) for shard, table in tables.items()})
    damage.bless(root)
    assert findings(root) == ["index.arrow - is no Arrow file: it has a column twice"]


def test_rows_that_take_more_than_any_are_named_and_not_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    size = open_shard_set(root).manifest.shards[0].index.size
    monkeypatch.setitem(LIMITS, "index.arrow, a shard's rows", size - 1)  # type: ignore[arg-type]
    assert f"{SHARD} - its rows take {size} bytes of index.arrow, and may take {size - 1}" in findings(root)


@pytest.mark.parametrize("data", [b"", b"x" * 40, b"PAR1" + bytes(100)])
@pytest.mark.parametrize("blessed", [False, True])
def test_an_index_that_is_no_arrow_file_is_named(root: Path, data: bytes, blessed: bool):
    (root / "index.arrow").write_bytes(data)
    if blessed:
        damage.edit_manifest(root, lambda document: document.update(index_size_bytes=len(data)))
    assert any(line.startswith("index.arrow - is ") for line in findings(root))


def test_an_index_that_begins_with_no_columns_is_named(root: Path):
    path = root / "index.arrow"
    data = bytearray(path.read_bytes())
    message = len(b"ARROW1\0\0") + 8  # behind the mark and the length of the message
    table = message + int.from_bytes(data[message : message + 4], "little")
    layout = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    kind = table + int.from_bytes(data[layout + 6 : layout + 8], "little")  # field 1: what the message is
    assert data[kind] == 1, "a schema"
    data[kind] = 200
    path.write_bytes(data)
    damage.bless_bytes(root)
    assert "it does not begin with its columns" in "\n".join(map(str, findings(root)))


def test_an_index_of_fewer_rows_is_named(root: Path):
    tables = damage.index_tables(root)
    damage.write_index(root, {shard: table.slice(1) for shard, table in tables.items()})
    damage.bless(root)
    assert f"{SHARD} - has 5 rows in index.arrow, and the manifest states 6" in findings(root)


def test_an_index_of_other_columns_is_named(root: Path):
    tables = damage.index_tables(root)
    damage.write_index(root, {shard: table.drop_columns(["json.size"]) for shard, table in tables.items()})
    damage.bless(root)
    assert findings(root) == ["index.arrow - column 'json.size' is absent, and must be int64"]
    damage.write_index(root, {shard: table.append_column("label.x", table["key"]) for shard, table in tables.items()})
    damage.bless(root)
    assert findings(root) == ["index.arrow - column 'label.x' is string, and must be absent"]


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(root: Path):
    whole = (root / "manifest.json").read_bytes()
    for at in range(0, len(whole), len(whole) // 100):
        damage.flip(root / "manifest.json", at, bit=at % 7)
        (finding,) = findings(root)
        assert finding.startswith("manifest.json - ")
        (root / "manifest.json").write_bytes(whole)


def test_the_manifest_of_another_build_is_named(root: Path, tmp_path: Path):
    build_other_shards(tmp_path / "again", tmp_path / "other")
    damage.take_from(root, tmp_path / "again", "manifest.json")
    found = findings(root)
    assert found[0] == "manifest.json - is of another build: neither the index nor any shard is the one that it names"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sample_rate_hz": 8000}, "states 8000 Hz, and all shards have 16000"),
        ({"scale": [7.0, 1.0]}, "states the scale [7.0, 1.0], which must be a lower and an upper end"),
        ({"scale": [1.0]}, "states the scale [1.0], which must be"),
        ({"targets": ["valence"]}, "column 'label.activation' is double, and must be absent"),
        ({"targets": ["valence"] * 2}, "names a target twice: valence, valence"),
        ({"members": ["json", "flac"]}, "states the members json, flac, which must be flac, json"),
        ({"categories": ["Happy", "Angry"]}, "lists categories out of order or twice: Happy, Angry"),
        ({"categories": []}, "lists categories []: ['Happy'] are missing there, and [] do not occur"),
        ({"counts": {"rejected": 5}}, "rejected.jsonl - has 1 lines, and the manifest counts 5"),
        ({"counts": {"rejected": 1, "resampled": -1}}, "counts -1 utterances as 'resampled'"),
        ({"counts": {}}, "manifest.json - does not count the utterances that were rejected"),
        ({"counts": {"rejected": 1, "resampled": 0}}, "does not count the utterances that were mixed down"),
        ({"rejected_sha256": "0" * 64}, "rejected.jsonl - is damaged, or another one"),
        ({"rejected_sha256": ""}, "has '' for rejected_sha256, which is no SHA-256"),
        ({"input_digest": "X" * 64}, "input_digest must be a SHA-256 in hexadecimal digits, not 'XXX"),
        ({"source_digest": "0" * 64}, "names a source and no teacher"),
        ({"splits": {}}, "lists splits [], and its shards are of ['Development', 'Train']"),
        ({"index_size_bytes": -1}, "index.arrow - is stale or damaged: has"),
        ({"format_version": 1}, "format version 1, and this installation reads 2"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_a_manifest_that_was_blessed_with_wrong_facts_is_named(root: Path, change: dict, words: str):
    damage.edit_manifest(root, lambda document: document.update(change))
    assert any(words in line for line in findings(root))


def test_rejected_utterances_are_held_to_their_digest_though_nobody_counts_them(root: Path):
    damage.edit_manifest(root, lambda document: document.update(counts={}))
    damage.flip(root / "rejected.jsonl", 3)
    assert "rejected.jsonl - is damaged, or another one: its SHA-256 is not the manifest's" in findings(root, fast=True)


def test_a_shard_name_with_nul_is_named_and_never_opened(root: Path):
    damage.edit_manifest(root, lambda document: document["shards"][0].update(name="\0.tar"))
    assert findings(root) == [
        "manifest.json - shard name '\\x00.tar' is not a plain file name as shards have. Do not use this shard set."
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_utterances": 5}, "has 6 rows in index.arrow, and the manifest states 5"),
        ({"num_utterances": -6}, f"has -6 for num_utterances of {SHARD}"),
        ({"num_samples": 5}, "samples in the index, and the manifest states 5"),
        ({"size_bytes": 1 << 70}, f"{SHARD} - has 30720 bytes, and the manifest states {1 << 70}"),
        ({"sha256": "00"}, "sha256 must be a SHA-256 in hexadecimal digits, not '00'"),
        ({"split": "Development"}, "has a shard 'Train-000000.tar' of split 'Development': no name of a shard"),
        ({"name": "Train-000005.tar"}, "lists Train-000001.tar after number 5 of its split: out of order"),
        ({"name": "../Train-000000.tar"}, "shard name '../Train-000000.tar' is not a plain file name"),
    ],
)
def test_a_manifest_that_was_blessed_with_wrong_facts_of_a_shard_is_named(root: Path, change: dict, words: str):
    damage.edit_manifest(root, lambda document: document["shards"][0].update(change))
    assert any(words in line for line in findings(root))


def test_totals_of_a_split_that_do_not_add_up_are_named(root: Path):
    damage.edit_manifest(root, lambda document: document["splits"]["Train"].update(hours=7.0))
    (finding,) = findings(root)
    assert finding.startswith("manifest.json - states that split 'Train' has 9 utterances and 7.0000 hours, and its")


def test_rejected_utterances_that_were_changed_are_named(root: Path):
    damage.flip(root / "rejected.jsonl", 10)
    assert findings(root) == ["rejected.jsonl - is damaged, or another one: its SHA-256 is not the manifest's"]
    (root / "rejected.jsonl").write_bytes(b"")
    assert findings(root) == ["rejected.jsonl - has 0 lines, and the manifest counts 1"]


RECORD = {"labels": {}, "label_variance": {}, "num_raters": None, "scale": [1, 7], "duration_s": 0.1, "num_samples": 1}
RECORD["transcript_confidence"] = None
RECORD |= dict.fromkeys(("key", "split", "transcript", "source", "speaker", "gender", "category"), "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "json is not an utterance's: "),
        (b"\xff", "json is not an utterance's: "),
        (b"[" * 150, "json is not an utterance's: "),
        (b"[]", "json is not an utterance's: it is no object"),
        (b"{}", "json is not an utterance's: key is missing"),
        (RECORD | {"labels": 3}, "json is not an utterance's: labels is 3, and must be an object of numbers"),
        (RECORD | {"labels": {"v": "x"}}, "json is not an utterance's: labels is {'v': 'x'}, and must be"),
        (RECORD | {"labels": {"v": float("nan")}}, "json is not an utterance's: labels is {'v': nan}, and must be"),
        (RECORD | {"scale": [1]}, "json is not an utterance's: scale is [1], and must be two numbers"),
        (
            RECORD | {"transcript": "\ud800"},
            r"json is not an utterance's: transcript is '\ud800', and must be a string",
        ),
        (RECORD | {"speaker": 5}, "json is not an utterance's: speaker is 5, and must be a string or null"),
        (RECORD | {"num_raters": 1.5}, "json is not an utterance's: num_raters is 1.5, and must be a whole number or"),
        (RECORD | {"num_samples": 10**30}, "json is not an utterance's: num_samples is 1000"),
        (RECORD | {"scale": [1, 5]}, "json has the scale [1, 5], and the manifest [1.0, 7.0]"),
        (RECORD, "json has labels of none, and the manifest's targets are activation, dominance, valence"),
        (RECORD, "json has label_variance of none, and the manifest's targets are activation, dominance, valence"),
        (RECORD, "json has 0.1 s for 1 samples"),
        (RECORD, "the index is stale: key is 'MSP/ü 1.wav' there and '' in json"),
    ],
)
def test_json_that_was_blessed_and_is_not_this_utterances_is_named(root: Path, data: bytes | dict, words: str):
    payload = data if isinstance(data, bytes) else json.dumps(data).encode()
    damage.replace_payload(root, SHARD, 1, "json", payload)
    damage.bless_crc(root, SHARD)
    assert any(line.startswith(f"{SHARD} {KEYS[1]} {words}") for line in findings(root))


@pytest.mark.parametrize(
    ("at", "byte", "words"),
    [
        (0, b"x", "flac is no FLAC file"),
        (18, b"\x05", "flac holds 1640 samples at 24192 Hz, and must hold 1640 at 16000 Hz"),
        (20, b"\x02", "flac holds 2 channels of 16 bit, and must hold 1 of 16 bit"),
        (25, b"\x00", "flac holds 1536 samples at 16000 Hz, and must hold 1640 at 16000 Hz"),
    ],
)
def test_audio_that_was_blessed_and_is_another_is_named(root: Path, at: int, byte: bytes, words: str):
    damage.overwrite(root / SHARD, damage.member_of(root, SHARD, 1, "flac").offset + at, byte)
    damage.bless_crc(root, SHARD)
    assert findings(root) == [f"{SHARD} {KEYS[1]} {words}"]


def test_sound_that_was_damaged_before_its_checksum_was_made_is_named(root: Path):
    """Its head is whole: only decoding reports."""
    damage.flip_in_member(root, SHARD, 1, "flac")
    damage.bless_crc(root, SHARD)
    (finding,) = findings(root)
    assert finding == f"{SHARD} {KEYS[1]} flac is damaged within: 0 of its 1640 samples can be decoded"
    assert findings(root, fast=True) == []


def test_sound_that_is_not_what_was_encoded_is_named_by_its_own_digest(root: Path):
    """Frames that were made anew, each with its right checksum, around other samples."""
    place = damage.member_of(root, SHARD, 1, "flac")
    damage.flip(root / SHARD, place.offset + 26)  # MD5 of the samples, in STREAMINFO
    damage.bless_crc(root, SHARD)
    assert findings(root) == [f"{SHARD} {KEYS[1]} flac holds other samples than were encoded: their MD5 differs"]
    damage.overwrite(root / SHARD, place.offset + 26, bytes(16))  # an encoder need not state it
    damage.bless_crc(root, SHARD)
    assert findings(root) == []


def test_zeros_within_a_long_sound_are_named(tmp_path: Path):
    """Readers leave such frames out without a word."""
    root = tmp_path / "shards"
    build_shards(root, tmp_path, lambda audio, _: soundfile.write(audio, NOISE, 16_000, subtype="PCM_16"))
    damage.zero_in_member(root, SHARD, 0, "flac")
    damage.bless_crc(root, SHARD)
    (finding,) = findings(root)
    assert re.fullmatch(f"{SHARD} {KEYS[0]} flac is damaged within: [0-9]{{5}} of its 20000 samples can be .*", finding)
