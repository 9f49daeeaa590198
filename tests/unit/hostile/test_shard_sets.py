"""Shard sets and caches that somebody made to do harm: sealed, so that no digest reports, and planted beside ours."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ccts_dist.errors import ConfigError, FetchError, ShardError, TeacherError
from ccts_dist.evaluation.results import predictions_name
from ccts_dist.limits import LIMITS, MOST_JSON_VALUES, parse_json, read_limited
from ccts_dist.shards import open_merged_teacher, open_shard_set, open_teacher_cache
from ccts_dist.shards.format.schema import parse_manifest
from ccts_dist.shards.format.sealed_json import sealed_bytes
from ccts_dist.shards.format.tars import walk_tar
from ccts_dist.shards.format.teacher_cache import parse_cache_manifest
from ccts_dist.shards.stores.fetch_cache import FetchCache, Refusal, Reservation, cached_name
from ccts_dist.shards.stores.retry import RetryPolicy
from ccts_dist.shards.stores.store import LocalStore, NamedFile
from ccts_dist.shards.stores.transfer import RemoteRoot
from tests.helpers.examples.sound_sets import KEYS, SHARD, build_sound
from tests.helpers.faults import damage

PATHS = ("/../../../tmp/x", "..", "a" * 63, "A" * 64, "0" * 63 + "\n", "0" * 65, "", "\ud800" * 64)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sound(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "shards", tmp_path / "shards"))


@pytest.fixture
def cache(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "cache", tmp_path / "cache"))


def refuse_digest(folder: Path, change: Callable[[dict[str, Any]], object], parse: Callable[..., Any]) -> str:
    tree = json.loads((folder / "manifest.json").read_bytes())
    change(tree)
    data = json.dumps(tree).encode()
    with pytest.raises((ShardError, TeacherError)) as refused:
        parse(data, where="here")
    return str(refused.value)


@pytest.mark.parametrize("scale", [[7.0, 1.0], [1.0, 1.0], [1.0], [1.0, 4.0, 7.0]])
def test_a_scale_that_does_not_rise_is_refused_before_anything_is_predicted_on_it(root: Path, scale: list[float]):
    tree = json.loads((root / "manifest.json").read_bytes())
    tree.pop("seal")
    (root / "manifest.json").write_bytes(sealed_bytes(tree | {"scale": scale}))
    with pytest.raises(ShardError, match=r"states the scale .*, which must rise"):
        open_shard_set(root)


@pytest.mark.parametrize("text", PATHS)
def test_a_digest_of_a_manifest_that_is_a_path_is_refused(root: Path, text: str):
    words = refuse_digest(root, lambda tree: tree["shards"][0].update(sha256=text), parse_manifest)
    assert "shards[0].sha256" in words
    words = refuse_digest(root, lambda tree: tree.update(index_sha256=text), parse_manifest)
    assert "index_sha256" in words
    if text:
        words = refuse_digest(root, lambda tree: tree["shards"][0]["index"].update(sha256=text), parse_manifest)
        assert "shards[0].index.sha256" in words
        words = refuse_digest(root, lambda tree: tree.update(source_digest=text), parse_manifest)
        assert "source_digest" in words


@pytest.mark.parametrize("text", PATHS)
def test_a_digest_of_a_cache_manifest_that_is_a_path_is_refused(cache: Path, text: str):
    for key in ("sha256", "source_sha256"):
        words = refuse_digest(cache, lambda tree, key=key: tree["shards"][0].update({key: text}), parse_cache_manifest)
        assert f"shards[0].{key}" in words
    for key in ("shard_set_digest", "index_sha256"):
        assert key in refuse_digest(cache, lambda tree, key=key: tree.update({key: text}), parse_cache_manifest)
    words = refuse_digest(cache, lambda tree: tree["teacher"].update(weight_digest=text), parse_cache_manifest)
    assert "teacher.weight_digest" in words


@pytest.mark.parametrize(("name", "digest"), [("a.tar", "../" * 20), ("../a.tar", "0" * 64), ("a\0.tar", "0" * 64)])
def test_the_cache_of_fetched_files_makes_no_path_of_other_text(tmp_path: Path, name: str, digest: str):
    folder = FetchCache(tmp_path / "cache", 1000)
    file = NamedFile(name, 10, digest)
    for use in (folder.open, folder.reserve, folder.path):
        with pytest.raises(ShardError, match="must be a plain file name and a SHA-256"):
            use(file)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "cache"]


def test_rows_that_unfold_to_gigabytes_are_refused_before_they_do(root: Path):
    tables = damage.index_tables(root)
    rows = tables[SHARD].num_rows
    texts = pa.array(["x" * (300_000_000 // rows)] * rows, pa.string())
    at = tables[SHARD].schema.names.index("speaker")
    damage.write_index(root, tables | {SHARD: tables[SHARD].set_column(at, "speaker", texts)})
    damage.bless(root)
    assert (root / "index.arrow").stat().st_size < 200_000
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ShardError, match=f"{SHARD}: its rows in .* unfolds to 3[0-9]{{8}} bytes, and may have"):
        open_shard_set(root).rows(SHARD)
    assert pa.default_memory_pool().max_memory() <= max(before, LIMITS["index.arrow, a shard's rows"])


def test_one_long_text_does_not_widen_a_column_of_all_shards(root: Path):
    """Columns have a fixed width: a name of megabytes would be taken once for every shard."""

    def change(tree: dict[str, Any]) -> None:
        tree["shards"][0]["split"] = "x" * 100_000
        tree["shards"] *= 500

    tree = json.loads((root / "manifest.json").read_bytes())
    change(tree)
    with pytest.raises(ShardError, match="listed twice"):
        parse_manifest(json.dumps(tree).encode(), where="here")
    damage.edit_manifest(root, lambda tree: tree["shards"][0].update(split="x" * 300))
    with pytest.raises(ShardError, match="or one that is too long"):
        open_shard_set(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" + "{}," * MOST_JSON_VALUES + "{}]", "more than 4,000,000 values"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1e400}', "beyond 64 bits"),
        ('{"a": ' + "9" * 5_000 + "}", "5000 digits"),
    ],
)
def test_json_that_would_take_the_memory_or_is_no_number_is_refused(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_a_manifest_without_end_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "manifest.json").unlink()
    (root / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(ShardError, match="no regular file"):
        LocalStore(root).read_bytes("manifest.json")
    (root / "manifest.json").unlink()
    os.mkfifo(root / "manifest.json")  # would be waited for
    with pytest.raises(ShardError, match="no regular file"):
        LocalStore(root).read_bytes("manifest.json")
    monkeypatch.setitem(LIMITS, "manifest.json", 100)  # type: ignore[arg-type]
    (root / "manifest.json").unlink()
    (root / "manifest.json").write_bytes(bytes(101))
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_limited(root / "manifest.json", "manifest.json")


def test_a_store_that_sends_a_manifest_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(LIMITS, "manifest.json", 2_000_000)  # type: ignore[arg-type]
    (tmp_path / "manifest.json").write_bytes(bytes(10_000_000))
    place = RemoteRoot(f"file://{tmp_path}", RetryPolicy(attempts=3, first_wait_s=0.01))
    with pytest.raises(ShardError, match="more than 2,000,000 bytes"):
        place.read_bytes("manifest.json", tmp_path / "target", limit="manifest.json")


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(root: Path):
    (root / SHARD).unlink()
    os.mkfifo(root / SHARD)
    shard_set = open_shard_set(root)
    with pytest.raises(ShardError, match="no regular file"):
        shard_set.member(shard_set.rows(SHARD), 0, "json")


def test_a_chain_of_extended_headers_is_refused_before_it_fills_the_memory(tmp_path: Path):
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {f"a{number}": "x" for number in range(60_000)}
    headers = info.tobuf(tarfile.PAX_FORMAT)
    extended, own = headers[:-512], headers[-512:]
    (tmp_path / "a.tar").write_bytes(extended + own + bytes(1024))
    assert [member.name for member in walk_tar(tmp_path / "a.tar")] == ["a.txt"]
    (tmp_path / "a.tar").write_bytes(extended * 2 + own + bytes(1024))  # or hundreds, each with other records
    with pytest.raises(ShardError, match="an extended header is damaged: it claims"):
        list(walk_tar(tmp_path / "a.tar"))


FILE = NamedFile("Train-000000.tar", 10, hashlib.sha256(b"0123456789").hexdigest())


def plant(folder: FetchCache, data: bytes, mode: int = 0o666) -> Path:
    """A file that others may write, under the name of one of ours."""
    path = folder.path(FILE)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_planted_file_of_the_right_size_is_removed_and_not_read(tmp_path: Path):
    folder = FetchCache(tmp_path / "cache", 1000)
    path = plant(folder, b"9876543210")
    assert folder.open(FILE) is None
    assert not path.exists()


def test_a_file_of_somebody_else_is_read_once_its_digest_agrees(tmp_path: Path):
    folder = FetchCache(tmp_path / "cache", 1000)
    path = plant(folder, b"0123456789")
    for _ in range(2):
        descriptor = folder.open(FILE)
        assert descriptor is not None
        assert os.pread(descriptor, 10, 0) == b"0123456789"
        os.close(descriptor)
    path.write_bytes(b"9876543210")  # changed after it was believed
    assert folder.open(FILE) is None


def test_a_planted_link_is_never_followed(tmp_path: Path):
    folder = FetchCache(tmp_path / "cache", 1000)
    victim = tmp_path / "victim"
    victim.write_bytes(b"0123456789")
    folder.path(FILE).symlink_to(victim)
    assert folder.open(FILE) is None
    assert not folder.path(FILE).is_symlink()
    partial = folder.folder / f".{cached_name(FILE)}.10.partial"
    partial.symlink_to(victim)
    reservation = folder.reserve(FILE)
    assert isinstance(reservation, Reservation)
    with reservation:
        reservation.path.write_bytes(b"a" * 10)
        assert victim.read_bytes() == b"0123456789"
    os.link(victim, partial)
    with reserved(folder) as reservation:
        reservation.path.write_bytes(b"b" * 10)
    assert victim.read_bytes() == b"0123456789"


def reserved(folder: FetchCache) -> Reservation:
    reservation = folder.reserve(FILE)
    assert not isinstance(reservation, Refusal)
    return reservation


@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: (path / "x").mkdir(parents=True)])
def test_a_planted_pipe_or_folder_is_removed(tmp_path: Path, make: Callable[[Path], object]):
    folder = FetchCache(tmp_path / "cache", 1000)
    make(folder.path(FILE))
    assert folder.open(FILE) is None
    make(folder.folder / f".{cached_name(FILE)}.10.partial")
    with reserved(folder) as reservation:
        reservation.path.write_bytes(b"0123456789")
        os.close(reservation.publish())
    descriptor = folder.open(FILE)
    assert descriptor is not None
    os.close(descriptor)


def test_a_file_that_is_replaced_while_it_is_fetched_is_not_published(tmp_path: Path):
    folder = FetchCache(tmp_path / "cache", 1000)
    with reserved(folder) as reservation:
        reservation.path.unlink()
        reservation.path.write_bytes(b"9876543210")
        with pytest.raises(FetchError, match="was replaced while it was fetched"):
            reservation.publish()
    assert folder.open(FILE) is None


def test_a_folder_in_which_anybody_may_replace_files_is_refused(tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ConfigError, match=r"anybody may replace files in .*chmod \+t"):
        FetchCache(tmp_path / "cache", 1000)
    (tmp_path / "cache").chmod(0o1777)
    FetchCache(tmp_path / "cache", 1000)


def forge_condition(cache: Path, **changes: Any) -> None:
    damage.edit_condition(cache, lambda document: document["condition"].update(changes))
    damage.bless_condition(cache)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"w": [NAN] * 3}, "NaN is no number of JSON"),
        ({"b": [0.0, INF, 0.0]}, "Infinity is no number of JSON"),
        ({"w": [1.0]}, "one finite number per target"),
        ({"deviation": [0.1, 0.2]}, "one finite number per target"),
        ({"deviation": [0.1, 0.2, -0.3]}, "must not be below 0"),
        ({"num_rows": []}, "one finite number per target"),
        ({"targets": ["activation"]}, "is of targets activation"),
        ({"w": [1e39, "x", 2]}, "must be float"),
    ],
)
def test_a_condition_that_was_sealed_and_is_none_is_refused_when_the_cache_is_opened(
    sound: Path, cache: Path, changes: dict[str, Any], words: str
):
    forge_condition(cache, **changes)
    with pytest.raises(TeacherError, match=r"condition.json: .*" + words) as refused:
        open_teacher_cache(cache, open_shard_set(sound / "shards"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding_mean": [0.0]}, "has 1 numbers for embedding_mean, and embedding_size is 5"),
        ({"embedding_deviation": [1.0, 1.0, 1.0, 1.0, -1.0]}, "embedding_deviation that cannot be one"),
        ({"embedding_size": 1 << 40}, "must be 1 to 65536"),
        ({"embedding_size": 0, "embedding_mean": [], "embedding_deviation": []}, "must be 1 to 65536"),
        ({"targets": []}, "names no target"),
    ],
)
def test_facts_of_a_teacher_that_cannot_be_are_refused(sound: Path, cache: Path, changes: dict[str, Any], words: str):
    damage.edit_manifest(cache, lambda tree: tree["teacher"].update(changes))
    with pytest.raises(TeacherError, match=words):
        open_teacher_cache(cache, open_shard_set(sound / "shards"))


def forged_output(values: list[float], kind: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, kind))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (forged_output([0.0] * 7 + [NAN]), "numbers that are not finite"),
        (forged_output([INF] + [0.0] * 7), "numbers that are not finite"),
        (forged_output([0.0] * 8, "<i4"), r"is no float32\[8\]"),
    ],
)
def test_outputs_that_were_sealed_and_are_none_are_refused_before_training(
    sound: Path, cache: Path, data: bytes, words: str
):
    damage.replace_payload(cache, SHARD, 1, "teacher.npy", data)
    damage.bless_crc(cache, SHARD)
    opened = open_teacher_cache(cache, open_shard_set(sound / "shards"))
    with pytest.raises(TeacherError, match=words) as refused:
        opened.check_outputs([SHARD])
    assert KEYS[1] in str(refused.value)
    assert str(cache) in str(refused.value)


@pytest.mark.parametrize("values", [3, 16])
def test_outputs_of_another_length_are_refused_by_the_index_alone(sound: Path, cache: Path, values: int):
    """A short vector, or one of another type: in a store, too, where no output is fetched for it."""
    damage.change_index(cache, SHARD, "teacher.npy.size", {1: 128 + 4 * values})
    damage.bless(cache)
    opened = open_teacher_cache(cache, open_shard_set(sound / "shards"))
    words = f"has {128 + 4 * values} bytes, and the teacher's outputs have 160"
    with pytest.raises(TeacherError, match=words) as refused:
        opened.check_outputs([SHARD])
    assert KEYS[1] in str(refused.value)
    assert str(cache) in str(refused.value)


def test_sound_outputs_pass_in_a_cache_and_in_merged_shards(sound: Path):
    shard_set = open_shard_set(sound / "shards")
    open_teacher_cache(sound / "cache", shard_set).check_outputs([shard.name for shard in shard_set.manifest.shards])
    merged = open_shard_set(sound / "merged")
    open_merged_teacher(merged).check_outputs([shard.name for shard in merged.manifest.shards])


def test_the_security_page_has_the_table_of_limits():
    text = (Path(__file__).resolve().parents[3] / "SECURITY.md").read_text(encoding="utf-8")
    for what, limit in LIMITS.items():
        assert f"| {what} | {limit >> 20} MiB |" in text


@pytest.mark.parametrize(
    ("split", "name"),
    [("Test1", "Test1"), ("a/b", "a%2Fb"), ("../x", "%2E%2E%2Fx"), ("a\0", "a%00"), ("Ä b", "%C3%84%20b")],
)
def test_a_split_of_any_name_has_a_file_of_its_own_in_an_evaluation(split: str, name: str):
    assert predictions_name(split, 0) == f"predictions-{name}.parquet"
    assert predictions_name(split, 1) == f"predictions-{name}.2.parquet"
