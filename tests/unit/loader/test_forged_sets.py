"""Sets that a faulty tool has written and sealed, so that no digest reports: every one is refused in words, or read.

Ranks agree on a project's error and stop together; any other ends one of them alone.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import CctsError, ShardError, TeacherError
from ccts_dist.loader.loader import Loader
from ccts_dist.records import DIMENSIONS
from ccts_dist.shards import open_shard_set, open_teacher_cache
from tests.helpers.examples.sound_sets import KEYS, SHARD, build_sound
from tests.helpers.faults import damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards`` and ``cache``, to be copied."""
    return build_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound / "shards", tmp_path / "shards")
    return tmp_path / "shards"


def read_all(root: Path, *, damaged: str = "raise", cache: Path | None = None) -> tuple[list[str], list[str]]:
    """The keys that an epoch gives, and what it states of damage."""
    shard_set = open_shard_set(root)
    loader = Loader(
        shard_set,
        ("Train", "Development"),
        batch=BatchConfig(global_batch_size=6, micro_batch_size=3),
        data=DataConfig(shards=str(root), num_workers=0, shuffle_buffer_size=24, bucket_batches=2, on_corrupt=damaged),
        targets=DIMENSIONS,
        seed=1,
        ranks=Ranks(),
        encode_text=lambda text: list(text.encode()),
        teacher=None if cache is None else open_teacher_cache(cache, shard_set),
    )
    keys, words = [], []
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            keys += [key for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True) if weight]
            words += batch.damaged
    return keys, words


def test_the_set_is_read_as_it_was_built(root: Path):
    keys, words = read_all(root)
    assert len(set(keys)) == 12
    assert words == []


@pytest.mark.parametrize("damaged", ["raise", "skip"])
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("flac.offset", 1 << 62, f"flac of {KEYS[1]!r} lies at byte 4611686018427387904, of"),
        ("flac.offset", -512, f"flac of {KEYS[1]!r} lies at byte -512, of"),
        ("flac.size", 1 << 62, "of 4611686018427387904 bytes"),
        ("json.size", -1, "of -1 bytes"),
        ("num_samples", 1 << 60, f"audio of {KEYS[1]!r} has 1152921504606846976 samples"),
        ("num_samples", 0, f"audio of {KEYS[1]!r} has 0 samples"),
        ("num_samples", 1639, "samples, and the manifest states"),
        ("label.valence", 5.0, f"label 'valence' of {KEYS[1]!r} is 5.0, not 0..1"),
        ("label.valence", float("inf"), "is inf, not 0..1"),
        ("key", None, "column 'key' has no value everywhere"),
        ("key", "", "a key is empty"),
        ("key", KEYS[0], f"key {KEYS[0]!r} is there twice"),
        ("num_samples", None, "column 'num_samples' has no value everywhere"),
    ],
)
def test_rows_that_cannot_be_are_refused_whatever_is_done_about_damage(
    root: Path, column: str, value: object, words: str, damaged: str
):
    damage.change_index(root, SHARD, column, {1: value})
    damage.bless(root)
    with pytest.raises(ShardError, match=f"{SHARD}: its rows in .* are not what they must be: ") as refused:
        read_all(root, damaged=damaged)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("column", ["label.valence", "json.crc32", "flac.offset", "key", "speaker", "num_samples"])
def test_rows_without_a_column_are_refused(root: Path, column: str):
    tables = damage.index_tables(root)
    damage.write_index(root, {shard: table.drop_columns([column]) for shard, table in tables.items()})
    damage.bless(root)
    with pytest.raises(ShardError, match=rf"column '{column}' is absent, and must be"):
        read_all(root)


def test_rows_with_a_column_of_another_kind_are_refused(root: Path):
    tables = damage.index_tables(root)
    damage.write_index(root, {shard: table.append_column("label.x", table["key"]) for shard, table in tables.items()})
    damage.bless(root)
    with pytest.raises(ShardError, match=r"column 'label.x' is string, and must be absent"):
        read_all(root)


def test_any_byte_of_a_sealed_index_is_read_or_refused_in_words(root: Path):
    whole = (root / "index.arrow").read_bytes()
    refused: list[str] = []
    for at in range(0, len(whole), len(whole) // 60):
        damage.overwrite(root / "index.arrow", at, b"\xff" * 4)
        damage.bless_bytes(root)
        try:
            read_all(root)
        except CctsError as error:
            refused.append(str(error))
        (root / "index.arrow").write_bytes(whole)
    assert len(refused) > 20
    assert not any("\n" in words for words in refused)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
        (b"[" * 150, "Expecting value"),
        (b"[]", "no transcript in it"),
        (b"{}", "no transcript in it"),
        (b'{"transcript": null}', "its transcript is 'None'"),
        (b'{"transcript": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_json_that_is_no_utterances_is_damage_to_stop_at_or_to_skip(root: Path, data: bytes, words: str):
    damage.replace_payload(root, SHARD, 1, "json", data)
    damage.bless_crc(root, SHARD)
    with pytest.raises(ShardError, match=f"{SHARD}: json of {KEYS[1]!r} cannot be read.*{words}"):
        read_all(root)
    keys, reported = read_all(root, damaged="skip")
    assert len(set(keys)) == 11
    assert len(reported) == 1
    assert words in reported[0]


def drop_shard(document: dict) -> None:
    del document["shards"][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_shard, "states that split 'Train' has 9 utterances, and its shards have 6"),
        (lambda document: document["shards"][0].update(num_utterances=1 << 70), "with a number beyond 64 bits"),
        (lambda document: document["shards"][0].update(num_utterances=-6), "has -6 for num_utterances of"),
        (lambda document: document["shards"][0].update(num_samples=1 << 60), f"has {1 << 60} for num_samples of"),
        (lambda document: document["shards"][0].update(size_bytes=1 << 62), f"has {1 << 62} for size_bytes of"),
        (lambda document: document["splits"].pop("Development"), "lists shards of splits that it does not name"),
        (lambda document: document["shards"][0]["index"].update(size=1 << 62), f"reported to take {1 << 62} bytes"),
        (lambda document: document["shards"][0]["index"].update(size=-1), "cannot read its rows"),
        (lambda document: document["shards"][0]["index"].update(offset=1 << 62), f"reported to take {1 << 62} bytes"),
        (lambda document: document["shards"][1]["index"].update(offset=1 << 70), "with a number beyond 64 bits"),
        (lambda document: document["shards"][0].update(sha256="\0"), "must be a SHA-256 in hexadecimal digits"),
        (lambda document: document.update(members=["flac", "x"]), "column 'x.offset' is absent"),
    ],
)
def test_manifests_that_do_not_add_up_are_refused(root: Path, change: Callable[[dict], object], words: str):
    damage.edit_manifest(root, change)
    with pytest.raises(ShardError) as refused:
        read_all(root)
    assert words in str(refused.value)


def test_audio_that_no_memory_holds_is_refused_though_all_agree_on_it(root: Path):
    tables = damage.index_tables(root)
    damage.change_index(root, SHARD, "num_samples", {1: 1 << 35})
    damage.change_index(root, SHARD, "flac.size", {1: 1 << 33})
    damage.bless(root)
    total = sum(tables[SHARD]["num_samples"].to_pylist()) - 1640 + (1 << 35)
    damage.edit_manifest(root, lambda document: document["shards"][0].update(num_samples=total, size_bytes=1 << 40))
    with pytest.raises(ShardError, match=f"of {1 << 33} bytes"):
        read_all(root)


def test_a_set_of_one_split_less_is_sound(root: Path):
    """What the two changes above are together."""

    def change(document: dict) -> None:
        document["splits"].pop("Development")
        document["shards"] = [shard for shard in document["shards"] if shard["split"] == "Train"]

    damage.edit_manifest(root, change)
    assert open_shard_set(root).manifest.split_names == ("Train",)


@pytest.mark.parametrize(
    ("column", "value"),
    [("teacher.npy.offset", 1 << 62), ("teacher.npy.size", 1 << 62), ("teacher.npy.size", None), ("key", None)],
)
def test_rows_of_a_teacher_cache_are_held_to_the_same(sound: Path, tmp_path: Path, column: str, value: object):
    cache = Path(shutil.copytree(sound / "cache", tmp_path / "cache"))
    assert len(read_all(sound / "shards", cache=cache)[0]) == 12
    damage.change_index(cache, SHARD, column, {1: value})
    damage.bless(cache)
    with pytest.raises(TeacherError, match=f"{SHARD}: its rows in .* are not what they must be: "):
        read_all(sound / "shards", cache=cache)


def test_a_teacher_cache_whose_shards_have_absurd_sizes_is_refused(sound: Path, tmp_path: Path):
    cache = Path(shutil.copytree(sound / "cache", tmp_path / "cache"))
    damage.edit_manifest(cache, lambda document: document["shards"][0].update(size_bytes=1 << 70))
    with pytest.raises(TeacherError, match=r"manifest.json: lists a shard with a number beyond 64 bits"):
        read_all(sound / "shards", cache=cache)


def test_a_record_of_the_json_member_can_be_spelled_by_any_tool(root: Path):
    """Escapes, other spaces, other keys first."""
    damage.replace_payload(root, SHARD, 1, "json", json.dumps({"z": 1, "transcript": "ü\U0001f600"}, indent=1).encode())
    damage.bless_crc(root, SHARD)
    assert len(set(read_all(root)[0])) == 12
