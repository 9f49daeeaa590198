"""Names, keys, JSON members and the manifest."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError, ShardError, TeacherError
from ccts_dist.records import Utterance
from ccts_dist.shards.format.index import IndexPlace
from ccts_dist.shards.format.schema import (
    Manifest,
    ShardEntry,
    SplitTotals,
    escape_key,
    local_folder,
    parse_manifest,
    shard_name,
    unescape_key,
    utterance_from_json,
    utterance_to_json,
)
from ccts_dist.shards.format.sealed_json import document_bytes, parse_document, sealed_bytes

ENTRY = ShardEntry(
    name="Train-000000.tar",
    split="Train",
    num_utterances=2,
    num_samples=900,
    size_bytes=1,
    sha256="a" * 64,
    index=IndexPlace(offset=8, size=16, sha256="c" * 64),
)
MANIFEST = Manifest(
    corpus="c",
    release="1",
    scale=(1.0, 7.0),
    targets=("valence",),
    splits={"Train": SplitTotals(num_utterances=2, hours=0.5)},
    shards=(ENTRY,),
    index_size_bytes=3,
    index_sha256="b" * 64,
    counts={"rejected": 0},
)
UTTERANCE = Utterance(
    key="ä.b",
    audio=Path("Audios/ä.b.wav"),
    split="Train",
    labels={"valence": 1.0},
    scale=(1.0, 7.0),
    transcript="naïve “words”",
    speaker="7",
    label_variance={"valence": 0.25},
    num_raters=3,
)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_key_comes_back_from_its_escaped_form_which_is_plain(key: str):
    escaped = escape_key(key)
    assert set(escaped) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-%")
    assert unescape_key(escaped) == key


def test_escaping_by_hand():
    assert escape_key("MSP/ä.5 b%") == "MSP%2F%C3%A4%2E5%20b%25"
    assert shard_name("Test 1", 7) == "Test%201-000007.tar"


@pytest.mark.parametrize("escaped", ["a.b", "a/b", "%2e", "%41", "%", "%ff", "a b", "ä"])
def test_what_no_key_escapes_to_is_refused(escaped: str):
    with pytest.raises(ShardError, match="is no escaped key"):
        unescape_key(escaped)


def test_the_json_member_brings_the_utterance_back():
    data = utterance_to_json(UTTERANCE, targets=("valence", "dominance"), num_samples=8000, source="Audios/ä.b.wav")
    assert utterance_from_json(data) == UTTERANCE


def test_the_json_member_has_sorted_keys_every_target_and_one_type_per_key():
    data = utterance_to_json(UTTERANCE, targets=("valence", "dominance"), num_samples=8000, source="s")
    assert (
        data
        == (
            '{"category": null, "duration_s": 0.5, "gender": null, "key": "ä.b", '
            '"label_variance": {"dominance": null, "valence": 0.25}, "labels": {"dominance": null, "valence": 1.0}, '
            '"num_raters": 3, "num_samples": 8000, "scale": [1.0, 7.0], "source": "s", "speaker": "7", '
            '"split": "Train", "transcript": "naïve “words”", "transcript_confidence": null}'
        ).encode()
    )


def test_a_label_that_is_not_finite_never_reaches_json():
    bad = dataclasses.replace(UTTERANCE, labels={"valence": float("nan")})
    with pytest.raises(ValueError, match="nan is not finite"):
        utterance_to_json(bad, targets=("valence",), num_samples=1, source="s")


def test_a_manifest_comes_back_from_its_file():
    assert parse_manifest(MANIFEST.to_bytes(), where="m") == MANIFEST
    assert MANIFEST.split_names == ("Train",)


def test_another_format_version_is_refused_before_anything_else_is_read():
    with pytest.raises(ShardError, match=r"m: format version 3, and this installation reads 2\. Install"):
        parse_manifest(b'{"format_version": 3, "what": "ever"}', where="m")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(data: bytes):
    with pytest.raises(ShardError, match="m: not a JSON document"):
        parse_manifest(data, where="m")
    with pytest.raises(TeacherError, match="m: not a JSON document"):
        parse_document(Manifest, data, where="m", error=TeacherError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"corpus": None}, "corpus must be str, not 'None'"),
        ({"scale": 3}, "scale must be a list"),
        ({"splits": []}, "splits must be an object"),
        ({"shards": [{"name": "a.tar"}]}, r"key 'shards\[0\].split' is missing"),
        ({"shards": [3]}, r"shards\[0\]. must be an object"),
        ({"counts": {"rejected": True}}, "counts.rejected must be int"),
    ],
)
def test_a_manifest_of_another_form_is_refused_by_key(change: dict, words: str):
    document = json.loads(MANIFEST.to_bytes()) | change
    with pytest.raises(ShardError, match=f"m: .*{words}"):
        parse_manifest(json.dumps(document).encode(), where="m")


@pytest.mark.parametrize("name", ["../a.tar", "/a.tar", "a/b.tar", ".a.tar", "a.zip"])
def test_a_shard_name_that_leads_elsewhere_is_refused(name: str):
    manifest = dataclasses.replace(MANIFEST, shards=(dataclasses.replace(ENTRY, name=name),))
    with pytest.raises(ShardError, match="is not a plain file name"):
        parse_manifest(manifest.to_bytes(), where="m")


@pytest.mark.parametrize(
    "name",
    ["\0.tar", "Train-00000\0.tar", "Train-000000.tar\n", "ä-000000.tar", "Train-00.tar", "-.tar", "T t-000000.tar"],
)
def test_a_shard_name_that_no_shard_can_have_is_refused(name: str):
    manifest = dataclasses.replace(MANIFEST, shards=(ENTRY, dataclasses.replace(ENTRY, name=name)))
    with pytest.raises(ShardError, match=r"m: shard name '.*' is not a plain file name as shards have\. Do not use"):
        parse_manifest(manifest.to_bytes(), where="m")


@pytest.mark.parametrize("split", ["Train", "a b/ä.%", "-", "\0"])
@pytest.mark.parametrize("number", [0, 999_999, 1_000_000])
def test_every_name_that_the_builder_gives_is_taken(split: str, number: int):
    entry = dataclasses.replace(ENTRY, name=shard_name(split, number))
    assert parse_manifest(dataclasses.replace(MANIFEST, shards=(entry,)).to_bytes(), where="m").shards == (entry,)


def test_a_shard_that_is_listed_twice_is_refused():
    with pytest.raises(ShardError, match="a shard is listed twice"):
        parse_manifest(dataclasses.replace(MANIFEST, shards=(ENTRY, ENTRY)).to_bytes(), where="m")


def test_equal_records_give_equal_bytes_and_none_is_absent():
    assert document_bytes(SplitTotals(num_utterances=1, hours=0.5)) == b'{\n "hours": 0.5,\n "num_utterances": 1\n}\n'
    assert b"teacher" not in MANIFEST.to_bytes()


def test_any_byte_of_a_manifest_that_has_changed_is_noticed():
    data = MANIFEST.to_bytes()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ShardError, match="m: "):
            parse_manifest(changed, where="m")


def test_a_manifest_that_was_edited_or_has_no_seal_is_refused():
    edited = MANIFEST.to_bytes().replace(b'"corpus": "', b'"corpus": "x')
    with pytest.raises(ShardError, match="m: was changed after it was written"):
        parse_manifest(edited, where="m")
    with pytest.raises(ShardError, match="m: has no seal"):
        parse_manifest(document_bytes(MANIFEST), where="m")


def test_a_document_can_be_sealed_again():
    document = json.loads(MANIFEST.to_bytes())
    assert sealed_bytes(document) == sealed_bytes(MANIFEST)


def test_commands_and_addresses_are_refused_where_a_folder_must_stand():
    with pytest.raises(ConfigError, match="pipe: URLs run a shell and are refused"):
        local_folder("pipe:cat x", what="shard set")
    with pytest.raises(ConfigError, match="only folders are read"):
        local_folder("s3://bucket/x", what="shard set")


def test_title_has_a_release_that_was_given():
    assert MANIFEST.title == "c 1"
    assert dataclasses.replace(MANIFEST, release="unknown").title == "c"
