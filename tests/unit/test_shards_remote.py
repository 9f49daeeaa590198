"""Files of a store: addresses, transfers that fail, reading through the cache, fetching ahead."""

import errno
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError, FetchError, MissingShardsError, ShardError
from ccts_dist.shards.address import check_address, is_address
from ccts_dist.shards.fetch_cache import FetchCache, Reservation, cached_name
from ccts_dist.shards.remote import RemoteStore, check_cache_holds, default_cache, open_store
from ccts_dist.shards.store import FileStore, LocalStore
from ccts_dist.shards.transfer import Patience, Place

SECRET = "wJalrXUtnFEMI"
HASTY = Patience(attempts=4, stall_s=0.4, first_wait_s=0.01, longest_wait_s=0.02)


@dataclass(frozen=True)
class Listed:
    """A file as a manifest lists it."""

    name: str
    size_bytes: int
    sha256: str


def listed(name: str, data: bytes) -> Listed:
    """What an honest manifest says of ``data``."""
    return Listed(name, len(data), hashlib.sha256(data).hexdigest())


def content(number: int, size: int = 3_000_000) -> bytes:
    """Bytes that tell files apart, more than one piece of a transfer."""
    return bytes([number]) * size


class Flaky(MemoryFileSystem):
    """Files in memory; each opening first does the next of ``troubles``."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    troubles: ClassVar[list[Callable[[], None]]] = []
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            self.opened.append(path.rpartition("/")[2])
            if self.troubles:
                self.troubles.pop(0)()
        return super()._open(path, mode, **options)


@pytest.fixture(autouse=True)
def flaky() -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield Flaky
    Flaky.store.clear()
    Flaky.troubles.clear()
    Flaky.opened.clear()


def put(name: str, data: bytes) -> Listed:
    """Lay a file into the store that tests fetch from."""
    fsspec.filesystem("flaky").pipe_file(f"/place/set/{name}", data)
    return listed(name, data)


def flaky_store(folder: Path, *, limit: int = 100_000_000, threads: int = 2) -> RemoteStore:
    return RemoteStore(Place("flaky://place/set", HASTY), FetchCache(folder, limit), threads=threads)


def read(store: FileStore, file: Listed) -> bytes:
    with store.opened(file) as descriptor:
        return os.pread(descriptor, file.size_bytes + 1, 0)


def raises(error: BaseException) -> Callable[[], None]:
    def trouble() -> None:
        raise error

    return trouble


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s"
        time.sleep(0.005)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        f"s3://AKIA:{SECRET}@bucket/set",
        f"s3://AKIA:{SECRET}/x@bucket/set",
        f"https://user:{SECRET}@host/set",
        f"https://{SECRET}@host/set",
        f"https://user:12/{SECRET}@host/set",
        f"http://[::1]{SECRET}:x@host/set",
    ],
)
def test_address_with_credentials_is_refused_without_repeating_them(address: str) -> None:
    with pytest.raises(ConfigError, match="Keep credentials in the environment") as refusal:
        check_address(address)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("address", [f"https://host/set?X-Amz-Signature={SECRET}", f"filecache::s3://b/{SECRET}#x"])
def test_signed_or_chained_address_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(ConfigError, match="may be a signed or chained address") as refusal:
        check_address(address)
    assert SECRET not in str(refusal.value)


def test_command_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run a shell and are refused") as refusal:
        open_store(f"pipe:curl -H {SECRET}", cache=tmp_path)
    assert SECRET not in str(refusal.value)


def test_address_that_names_no_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no place"):
        check_address("s3://")


def test_protocol_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read here"):
        check_address("nosuch://place/set")


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/some/set",
        "s3://bucket/user@team/set",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/set",
        "http://127.0.0.1:9000/set",
        "http://[::1]:9000/set",
        "http://[::1]/set",
        "file:///data/set",
    ],
)
def test_plain_address_is_taken_as_it_stands_but_for_slashes_at_its_end(address: str) -> None:
    assert check_address(address + "//") == address


def test_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    store = open_store(tmp_path)
    assert isinstance(store, LocalStore)
    assert read(store, listed("a.tar", b"abc")) == b"abc"
    assert store.path(listed("a.tar", b"abc")) == tmp_path / "a.tar"


def test_folder_without_the_file_is_told_by_its_name(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(MissingShardsError, match=r"manifest.json: cannot be read"):
        store.read_bytes("manifest.json")
    with pytest.raises(ShardError, match=r"a.tar: cannot be read"):
        read(store, listed("a.tar", b"abc"))


def test_folder_has_nothing_to_fetch_or_forget(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    store, file = open_store(tmp_path), listed("a.tar", b"abc")
    store.prefetch([file])
    with store.opened(file) as descriptor:
        assert not store.discard(file, descriptor)
    store.close()
    assert (tmp_path / "a.tar").exists()


def test_commands_and_addresses_are_told_from_folders() -> None:
    assert is_address("s3://bucket/set")
    assert is_address("pipe:cat x")
    assert not is_address("data/set")


def test_cache_lies_in_the_users_cache_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert default_cache() == Path("/scratch/cache/ccts-dist/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "ccts-dist" / "shards"


# One transfer


def test_file_comes_as_it_is_and_only_once(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("Train%2F1-000000.tar", content(1))
    store = flaky_store(tmp_path)
    assert read(store, file) == content(1)
    assert read(pickle.loads(pickle.dumps(store)), file) == content(1)
    assert store.path(file).read_bytes() == content(1)
    assert flaky.opened == [file.name]


def test_local_address_goes_through_the_cache_too(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(content(1))
    store = open_store(f"file://{tmp_path}/set", cache=tmp_path / "cache")
    file = listed("a.tar", content(1))
    assert read(store, file) == content(1)
    assert store.path(file).parent == tmp_path / "cache"


def test_passing_troubles_are_sat_out(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    flaky.troubles += [raises(TimeoutError()), raises(ConnectionResetError()), raises(OSError(errno.EREMOTEIO, "500"))]
    assert read(flaky_store(tmp_path), file) == content(1)
    assert len(flaky.opened) == 4


def test_lasting_trouble_ends_after_the_tries_that_patience_allows(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    flaky.troubles += [raises(OSError(errno.EREMOTEIO, SECRET))] * 9
    with pytest.raises(FetchError, match=r"flaky://place/set/a.tar: did not come \(OSError\); given up after 4 tries"):
        read(flaky_store(tmp_path), file)
    assert len(flaky.opened) == 4
    assert not list(tmp_path.glob("*.partial"))


class _AnswerError(OSError):
    """What web libraries raise: a status beside words that hold the address."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} for https://host/a.tar?X-Amz-Signature={SECRET}")
        self.status = status


class _StoreAnswerError(Exception):
    """What botocore raises."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{code} {SECRET}")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """What botocore raises without any."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(SECRET), "is not there"),
        (_AnswerError(404), r"is not there \(HTTP 404\)"),
        (_AnswerError(403), r"may not be read \(HTTP 403\)"),
        (PermissionError(SECRET), "may not be read"),
        (_StoreAnswerError(403, "SignatureDoesNotMatch"), r"may not be read \(HTTP 403 SignatureDoesNotMatch\)"),
        (_StoreAnswerError(400, "InvalidRequest"), r"did not come \(HTTP 400 InvalidRequest\)"),
        (_StoreAnswerError(405, f"no code {SECRET}"), r"did not come \(HTTP 405\)"),
        (NoCredentialsError(SECRET), r"may not be read \(NoCredentialsError\)"),
        (_AnswerError(410), r"did not come \(HTTP 410\)"),
        (ValueError(SECRET), r"did not come \(ValueError\)"),
        (OSError(errno.ENOSPC, SECRET), "no space left on device in .*name another folder in data.cache"),
    ],
)
def test_fault_that_will_not_pass_is_told_at_once_and_without_secrets(
    tmp_path: Path, flaky: type[Flaky], error: Exception, words: str
) -> None:
    file = put("a.tar", content(1))
    flaky.troubles.append(raises(error))
    with pytest.raises(ShardError, match=words) as told:
        read(flaky_store(tmp_path), file)
    assert SECRET not in str(told.value)
    assert told.value.__context__ is None
    assert len(flaky.opened) == 1


@pytest.mark.parametrize(
    "error",
    [_AnswerError(503), _AnswerError(429), _AnswerError(400), _StoreAnswerError(500, "InternalError")],
)
def test_answers_that_may_pass_are_tried_again(tmp_path: Path, flaky: type[Flaky], error: Exception) -> None:
    file = put("a.tar", content(1))
    flaky.troubles.append(raises(error))
    assert read(flaky_store(tmp_path), file) == content(1)


def test_fault_of_the_program_is_not_taken_for_one_of_the_store(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    flaky.troubles.append(raises(TypeError("wrong argument")))
    with pytest.raises(TypeError, match="wrong argument"):
        read(flaky_store(tmp_path), file)


def test_transfer_that_brings_nothing_is_given_up_and_tried_again(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    flaky.troubles.append(lambda: time.sleep(2.0))
    assert read(flaky_store(tmp_path), file) == content(1)
    assert len(flaky.opened) == 2


def test_other_bytes_under_the_name_are_refused_with_both_digests(tmp_path: Path, flaky: type[Flaky]) -> None:
    put("a.tar", content(2))
    wanted, found = listed("a.tar", content(1)), listed("a.tar", content(2))
    with pytest.raises(ShardError, match=f"is {found.sha256[:12]}, and the manifest says {wanted.sha256[:12]}"):
        read(flaky_store(tmp_path), wanted)
    assert len(flaky.opened) == 2
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("size", [10, 2_999_999, 3_000_001, 9_000_000])
def test_file_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    put("a.tar", content(1, size))
    with pytest.raises(ShardError, match=f"has {size} bytes, and the manifest says 3000000"):
        read(flaky_store(tmp_path), listed("a.tar", content(1)))


def test_manifest_is_read_without_being_kept(tmp_path: Path) -> None:
    put("manifest.json", b"{}")
    assert flaky_store(tmp_path).read_bytes("manifest.json") == b"{}"
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_small_file_that_was_damaged_on_its_way_is_asked_for_again(tmp_path: Path, flaky: type[Flaky]) -> None:
    put("manifest.json", b"{{")
    flaky.troubles += [lambda: None, lambda: put("manifest.json", b"{}")]
    assert flaky_store(tmp_path).read_bytes("manifest.json", lambda data: data == b"{}") == b"{}"


def test_small_file_that_comes_damaged_twice_is_the_callers_to_explain(tmp_path: Path, flaky: type[Flaky]) -> None:
    put("manifest.json", b"{{")
    assert flaky_store(tmp_path).read_bytes("manifest.json", lambda data: data == b"{}") == b"{{"
    assert len(flaky.opened) == 2


def test_missing_manifest_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(MissingShardsError, match=r"flaky://place/set/manifest.json: is not there"):
        flaky_store(tmp_path).read_bytes("manifest.json")


@given(attempt=st.integers(1, 60), luck=st.floats(0, 1))
def test_waits_double_up_to_the_longest_and_shrink_by_half_at_most(attempt: int, luck: float) -> None:
    patience = Patience(first_wait_s=0.5, longest_wait_s=30.0)
    whole = min(30.0, 0.5 * 2 ** (attempt - 1))
    assert whole / 2 <= patience.wait_s(attempt, luck) <= whole


# Reading through the cache


def test_reader_waits_for_whoever_fetches(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    store = flaky_store(tmp_path)
    reservation = FetchCache(tmp_path, 100_000_000).reserve(file)
    assert isinstance(reservation, Reservation)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(store, file)))
    reader.start()
    with reservation:
        time.sleep(0.1)
        assert not got
        reservation.path.write_bytes(content(1))
        os.close(reservation.publish())
    reader.join(10)
    assert got == [content(1)]
    assert not flaky.opened
    assert store.statistics.waiting_s >= 0.09
    assert store.statistics.num_files == 0


def test_closing_releases_readers_that_wait(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    store = flaky_store(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    def wait() -> None:
        with pytest.raises(FetchError, match=r"a.tar: not fetched, because reading was stopped") as stopped:
            read(store, file)
        told.append(str(stopped.value))

    flaky.troubles.append(hold)
    readers = [threading.Thread(target=wait) for _ in range(2)]  # one fetches, the other waits for it
    for reader in readers:
        reader.start()
    assert begun.wait(10)
    store.close()
    for reader in readers:
        reader.join(10)
    go_on.set()
    assert len(told) == 2
    assert read(store, file) == content(1)


def test_damaged_file_is_fetched_anew_once_for_all_its_readers(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    store = flaky_store(tmp_path)
    store.path(file).write_bytes(content(9))
    with store.opened(file) as first, store.opened(file) as second:
        assert store.discard(file, first)
        assert read(store, file) == content(1)
        assert store.discard(file, second)  # of the damaged one too, which is gone
        assert read(store, file) == content(1)
    assert len(flaky.opened) == 2


def test_file_that_is_damaged_again_is_not_fetched_again(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    store = flaky_store(tmp_path)
    for expected in (True, False, False):
        with store.opened(file) as descriptor:
            assert store.discard(file, descriptor) == expected
    assert len(flaky.opened) == 2


def test_shard_that_the_store_holds_wrong_is_asked_for_once_whoever_reads_it(
    tmp_path: Path, flaky: type[Flaky]
) -> None:
    put("a.tar", content(2))
    store, file = flaky_store(tmp_path), listed("a.tar", content(1))
    for _ in range(3):
        with pytest.raises(ShardError, match="it came so twice") as damage:
            read(store, file)
        assert not isinstance(damage.value, FetchError)
    assert len(flaky.opened) == 2


def test_store_that_was_away_is_asked_again(tmp_path: Path, flaky: type[Flaky]) -> None:
    file = put("a.tar", content(1))
    store = flaky_store(tmp_path)
    flaky.troubles += [raises(TimeoutError())] * 4
    with pytest.raises(FetchError, match="timed out; given up"):
        read(store, file)
    assert read(store, file) == content(1)


def test_cut_file_is_fetched_anew(tmp_path: Path) -> None:
    file = put("a.tar", content(1))
    store = flaky_store(tmp_path)
    os.truncate(store.path(file), 10)
    assert read(store, file) == content(1)


def test_evicted_file_stays_readable_to_who_has_it_open(tmp_path: Path) -> None:
    first, second = put("a.tar", content(1)), put("b.tar", content(2))
    store = flaky_store(tmp_path, limit=3_500_000)
    with store.opened(first) as descriptor:
        assert read(store, second) == content(2)
        assert not (tmp_path / cached_name(first)).exists()
        assert os.pread(descriptor, 4_000_000, 0) == content(1)


def test_statistics_count_what_this_process_fetched(tmp_path: Path) -> None:
    files = [put(f"{number}.tar", content(number)) for number in range(3)]
    store = flaky_store(tmp_path)
    for file in [*files, *files]:
        read(store, file)
    counted = store.statistics
    assert (counted.num_files, counted.size_bytes) == (3, 9_000_000)
    assert 0 < counted.fetching_s <= counted.waiting_s


def test_cache_that_cannot_hold_a_window_is_refused() -> None:
    check_cache_holds(2_000_000_000, 2_000_000_000)
    with pytest.raises(ConfigError, match=r"data.cache_gb = 2: .* take 2.5 GB. Raise data.cache_gb, or lower"):
        check_cache_holds(2_000_000_000, 2_500_000_000)


# Ahead of need


def test_wished_files_come_by_themselves(tmp_path: Path, flaky: type[Flaky]) -> None:
    files = [put(f"{number}.tar", content(number)) for number in range(5)]
    store = flaky_store(tmp_path)
    store.prefetch(files)
    until(lambda: store.statistics.num_files == 5)
    store.close()
    assert all(read(store, file) == content(number) for number, file in enumerate(files))
    assert sorted(flaky.opened) == [file.name for file in files]
    assert store.statistics.waiting_s == 0


def test_wished_files_do_not_evict_each_other(tmp_path: Path) -> None:
    old = put("old.tar", content(9))
    files = [put(f"{number}.tar", content(number)) for number in range(5)]
    store = flaky_store(tmp_path, limit=10_000_000, threads=1)
    read(store, old)
    store.prefetch(files)
    until(lambda: store.statistics.num_files == 4)
    time.sleep(0.1)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {cached_name(file) for file in files[:3]}
    store.close()


def test_reader_comes_before_what_was_wished_but_spares_it_while_it_can(tmp_path: Path) -> None:
    old, new = put("old.tar", content(8)), put("new.tar", content(9))
    files = [put(f"{number}.tar", content(number)) for number in range(2)]
    store = flaky_store(tmp_path, limit=9_000_000)
    read(store, files[0])
    time.sleep(0.01)
    read(store, old)
    store.prefetch(files)
    until(lambda: store.statistics.num_files == 3)
    assert read(store, new) == content(9)  # "old" was used later than the first file, which is wished
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {cached_name(file) for file in [*files, new]}
    store.close()


def test_new_wishes_take_the_place_of_old_ones(tmp_path: Path, flaky: type[Flaky]) -> None:
    begun, go_on = threading.Event(), threading.Event()
    first, old, new = (put(f"{name}.tar", content(number)) for number, name in enumerate(("first", "old", "new")))

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    flaky.troubles.append(hold)
    store = RemoteStore(Place("flaky://place/set"), FetchCache(tmp_path, 10**8), threads=1)
    store.prefetch([first, old])
    assert begun.wait(10)
    store.prefetch([new])
    go_on.set()
    until(lambda: store.statistics.num_files == 2)
    store.close()
    assert flaky.opened == ["first.tar", "new.tar"]
    assert old.name not in flaky.opened


def test_fault_ahead_of_need_is_left_to_the_reader_to_tell(tmp_path: Path) -> None:
    good = put("good.tar", content(1))
    missing = listed("missing.tar", content(2))
    store = flaky_store(tmp_path, threads=1)
    store.prefetch([missing, good])
    until(lambda: store.statistics.num_files == 1)
    with pytest.raises(ShardError, match=r"missing.tar: is not there"):
        read(store, missing)
    store.close()


def test_closing_ends_transfers_and_leaves_nothing_half(tmp_path: Path, flaky: type[Flaky]) -> None:
    begun, go_on = threading.Event(), threading.Event()
    file = put("a.tar", content(1))

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    flaky.troubles.append(hold)
    store = RemoteStore(Place("flaky://place/set"), FetchCache(tmp_path, 10**8))
    store.prefetch([file])
    assert begun.wait(10)
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    go_on.set()
    assert read(store, file) == content(1)  # a closed store can be read, and wished of, again
    store.prefetch([file])
    store.close()
