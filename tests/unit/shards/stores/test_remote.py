"""Files of a store, read through the cache and fetched ahead of need."""

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError, FetchError, MissingShardsError, ShardError
from ccts_dist.shards.stores.fetch_cache import FetchCache, Reservation, cached_name
from ccts_dist.shards.stores.remote import RemoteStore, check_cache_holds, default_cache, open_store
from ccts_dist.shards.stores.store import LocalStore
from ccts_dist.shards.stores.transfer import RemoteRoot
from tests.helpers.faults.flaky_store import (
    Flaky,
    content,
    flaky_file_system,
    flaky_store,
    listed,
    put,
    raises,
    read,
    until,
)


@pytest.fixture(autouse=True)
def flaky() -> Iterator[type[Flaky]]:
    with flaky_file_system() as file_system:
        yield file_system


def test_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    store = open_store(tmp_path)
    assert isinstance(store, LocalStore)
    assert read(store, listed("a.tar", b"abc")) == b"abc"
    assert store.path(listed("a.tar", b"abc")) == tmp_path / "a.tar"


def test_folder_without_the_file_is_reported_by_its_name(tmp_path: Path) -> None:
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


def test_cache_lies_in_the_users_cache_folder_unless_reported_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert default_cache() == Path("/scratch/cache/ccts-dist/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "ccts-dist" / "shards"


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
    reported: list[str] = []

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    def wait() -> None:
        with pytest.raises(FetchError, match=r"a.tar: not fetched, because reading was stopped") as stopped:
            read(store, file)
        reported.append(str(stopped.value))

    flaky.troubles.append(hold)
    readers = [threading.Thread(target=wait) for _ in range(2)]  # one fetches, the other waits for it
    for reader in readers:
        reader.start()
    assert begun.wait(10)
    until(lambda: store.statistics.num_waiting == 2)
    store.close()
    for reader in readers:
        reader.join(10)
    go_on.set()
    assert len(reported) == 2
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
    with pytest.raises(
        ConfigError, match=r"data.shard_cache_gb = 2: .* take 2.5 GB. Raise data.shard_cache_gb, or lower"
    ):
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
    store = RemoteStore(RemoteRoot("flaky://place/set"), FetchCache(tmp_path, 10**8), threads=1)
    store.prefetch([first, old])
    assert begun.wait(10)
    store.prefetch([new])
    go_on.set()
    until(lambda: store.statistics.num_files == 2)
    store.close()
    assert flaky.opened == ["first.tar", "new.tar"]
    assert old.name not in flaky.opened


def test_fault_ahead_of_need_is_left_to_the_reader_to_report(tmp_path: Path) -> None:
    good = put("good.tar", content(1))
    missing = listed("missing.tar", content(2))
    store = flaky_store(tmp_path, threads=1)
    store.prefetch([missing, good])
    until(lambda: store.statistics.num_files == 1)
    with pytest.raises(ShardError, match=r"missing.tar: is not there"):
        read(store, missing)
    store.close()


def test_store_whose_last_user_is_a_thread_that_fetches_goes_without_a_word(
    tmp_path: Path, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a process: the thread then lets its own store go, and must not wait for itself."""
    begun, go_on = threading.Event(), threading.Event()
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    flaky.troubles.append(hold)
    store = RemoteStore(RemoteRoot("flaky://place/set"), FetchCache(tmp_path, 10**8), threads=2)
    store.prefetch([put("a.tar", content(1))])
    assert begun.wait(10)
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is not None
    go_on.set()
    until(lambda: gone() is None and "shard-fetch" not in {thread.name for thread in threading.enumerate()})
    assert reported == []


def test_closing_ends_transfers_and_leaves_nothing_half(tmp_path: Path, flaky: type[Flaky]) -> None:
    begun, go_on = threading.Event(), threading.Event()
    file = put("a.tar", content(1))

    def hold() -> None:
        begun.set()
        go_on.wait(10)

    flaky.troubles.append(hold)
    store = RemoteStore(RemoteRoot("flaky://place/set"), FetchCache(tmp_path, 10**8))
    store.prefetch([file])
    assert begun.wait(10)
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    go_on.set()
    assert read(store, file) == content(1)  # a closed store can be read, and wished of, again
    store.prefetch([file])
    store.close()
