"""The bounded folder of fetched files: what it holds, what it evicts, who may fetch."""

import os
import pickle
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError
from ccts_dist.shards.stores.fetch_cache import FetchCache, Refusal, Reservation, cached_name


@dataclass(frozen=True)
class Listed:
    """A file as a manifest lists it."""

    name: str
    size_bytes: int
    sha256: str


def listed(number: int, size: int = 10) -> Listed:
    return Listed(f"Train-{number:06d}.tar", size, f"{number:064x}")


def reserved(cache: FetchCache, file: Listed) -> Reservation:
    reservation = cache.reserve(file)
    assert isinstance(reservation, Reservation)
    return reservation


def bring(cache: FetchCache, file: Listed) -> None:
    """Fetch a file that is not there."""
    with reserved(cache, file) as reservation:
        reservation.path.write_bytes(bytes(file.size_bytes))
        os.close(reservation.publish())


def use(cache: FetchCache, file: Listed) -> bool:
    """Whether the file was there; as a reader uses it."""
    descriptor = cache.open(file)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


@given(
    limit=st.integers(20, 60),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    uses=st.lists(st.integers(0, 7), max_size=40),
)
def test_least_recently_used_goes_first_and_the_limit_holds(limit: int, sizes: list[int], uses: list[int]) -> None:
    model: OrderedDict[int, int] = OrderedDict()
    with tempfile.TemporaryDirectory() as folder:
        cache = FetchCache(Path(folder), limit, touch_s=0.0)
        for number in uses:
            number %= len(sizes)
            file = listed(number, sizes[number])
            if use(cache, file):
                model.move_to_end(number)
            else:
                assert number not in model
                bring(cache, file)
                while sum(model.values()) + sizes[number] > limit:
                    model.popitem(last=False)
                model[number] = sizes[number]
            assert names(Path(folder)) == {cached_name(listed(n, sizes[n])) for n in model}
            assert cache.used_bytes() == sum(model.values()) <= limit


def test_file_that_is_being_fetched_counts_whole_from_the_start(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 25)
    bring(cache, listed(1))
    with reserved(cache, listed(2)), reserved(cache, listed(3)):
        assert cache.used_bytes() == 20
        assert not use(cache, listed(1))
        assert cache.reserve(listed(4)) is Refusal.FULL
        assert names(tmp_path) == {f".{cached_name(listed(number))}.10.partial" for number in (2, 3)}
    assert cache.used_bytes() == 0


def test_file_that_no_room_could_be_made_for_evicts_nothing(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 25)
    bring(cache, listed(1))
    with reserved(cache, listed(2)):
        assert cache.reserve(listed(3, 20)) is Refusal.FULL
    assert use(cache, listed(1))


def test_file_larger_than_the_limit_is_alone(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 25)
    bring(cache, listed(1))
    bring(cache, listed(2, 30))
    assert names(tmp_path) == {cached_name(listed(2, 30))}
    assert cache.reserve(listed(3, 40), gently=True) is not Refusal.FETCHING


def test_only_one_may_fetch_a_file(tmp_path: Path) -> None:
    cache, other = FetchCache(tmp_path, 100), FetchCache(tmp_path, 100)
    with reserved(cache, listed(1)) as reservation:
        assert other.reserve(listed(1)) is Refusal.FETCHING
        reservation.path.write_bytes(bytes(10))
        os.close(reservation.publish())
        assert other.reserve(listed(1)) is Refusal.HERE
    assert use(other, listed(1))


def test_fetch_that_failed_gives_room_and_right_back(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 10)
    with pytest.raises(ZeroDivisionError), reserved(cache, listed(1)):
        raise ZeroDivisionError
    assert names(tmp_path) == set()
    bring(cache, listed(1))


def test_block_that_ends_late_leaves_another_fetch_of_the_file_alone(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 10)
    with reserved(cache, listed(1)) as first:
        first.path.write_bytes(bytes(10))
        descriptor = first.publish()
        os.close(descriptor)
        bring(cache, listed(2))  # for which the first one goes
        second = reserved(cache, listed(1))
    with second:
        assert cache.reserve(listed(1)) is Refusal.FETCHING


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 100)
    left = tmp_path / f".{cached_name(listed(1))}.10.partial"
    child = os.fork()
    if child == 0:
        reservation = cache.reserve(listed(1))
        os._exit(0 if isinstance(reservation, Reservation) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert left.exists()
    assert cache.used_bytes() == 0
    assert not left.exists()


def test_file_whose_fetcher_died_can_be_fetched_at_once(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 10)
    (tmp_path / f".{cached_name(listed(1))}.10.partial").write_bytes(bytes(7))
    bring(cache, listed(1))
    assert use(cache, listed(1))


def test_files_that_are_needed_are_evicted_last(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 30)
    for number in (1, 2, 3):
        bring(cache, listed(number))
    needed = {cached_name(listed(1)), cached_name(listed(2))}
    with cache.reserve(listed(4), keep=needed):  # pyright: ignore
        assert use(cache, listed(1))
        assert use(cache, listed(2))
        assert not use(cache, listed(3))


def test_files_that_are_needed_are_not_evicted_to_fetch_ahead(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 20)
    for number in (1, 2):
        bring(cache, listed(number))
    needed = {cached_name(listed(1)), cached_name(listed(2))}
    assert cache.reserve(listed(3), keep=needed, gently=True) is Refusal.FULL
    assert use(cache, listed(1))
    assert use(cache, listed(2))


def test_foreign_files_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(bytes(1000))
    (tmp_path / ".thesis.partial").write_bytes(bytes(1000))
    cache = FetchCache(tmp_path, 10)
    for number in (1, 2):
        bring(cache, listed(number))
    assert cache.used_bytes() == 10
    assert {"thesis.tex", ".thesis.partial"} < names(tmp_path)


def test_files_of_one_name_in_two_sets_are_two(tmp_path: Path) -> None:
    assert cached_name(Listed("a.tar", 1, "1" * 64)) != cached_name(Listed("a.tar", 1, "2" * 64))


def test_long_names_stay_within_what_file_systems_allow(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 10**15)
    file = Listed("x" * 240 + "-000000.tar", 10**12, "1" * 64)
    with reserved(cache, file) as reservation:
        assert len(reservation.path.name) < 255


def test_use_is_noted_now_and_then_only(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 100, touch_s=3600.0)
    bring(cache, listed(1))
    assert use(cache, listed(1))
    noted = cache.path(listed(1)).stat().st_mtime_ns
    assert use(cache, listed(1))
    assert cache.path(listed(1)).stat().st_mtime_ns == noted
    assert use(pickle.loads(pickle.dumps(FetchCache(tmp_path, 100, touch_s=0.0))), listed(1))
    assert cache.path(listed(1)).stat().st_mtime_ns > noted


def test_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data.shard_cache: .*file/cache cannot be written"):
        FetchCache(tmp_path / "file" / "cache", 100)


def test_many_threads_never_exceed_the_limit(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path, 45, touch_s=0.0)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], cache.used_bytes())

    def work(first: int) -> None:
        for number in range(60):
            file = listed((first * 7 + number) % 12)
            if use(cache, file):
                continue
            reservation = cache.reserve(file)
            if isinstance(reservation, Reservation):
                with reservation:
                    reservation.path.write_bytes(bytes(10))
                    os.close(reservation.publish())

    watcher = threading.Thread(target=watch)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    watcher.join()
    assert 0 < most[0] <= 45
    assert not list(tmp_path.glob("*.partial"))


def test_room_that_could_not_be_made_is_not_taken_for_a_transfer_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks next would wait for it until the process ends."""
    cache, file = FetchCache(tmp_path, 100), listed(1)

    def fail(own: str) -> None:
        raise OSError("the disk has gone")

    with monkeypatch.context() as broken:
        broken.setattr(cache, "_scan", fail)
        with pytest.raises(OSError, match="the disk has gone"):
            cache.reserve(file)
    with reserved(cache, file):
        pass
    assert names(tmp_path) == set()
