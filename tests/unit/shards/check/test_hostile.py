"""The checker against bytes of any kind: it names what is wrong, and neither fails, hangs nor takes the memory."""

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from ccts_dist.errors import CctsError
from ccts_dist.shards import open_shard_set
from ccts_dist.shards.check.check import check_shard_set
from tests.helpers.examples.shard_examples import build_example, example_cache, make_utterances
from tests.helpers.faults import damage
from tests.tiers import examples

FILES = ("shards/Train-000000.tar", "shards/index.arrow", "shards/manifest.json", "shards/rejected.jsonl")
FILES += ("cache/Train-000000.tar", "cache/index.arrow", "cache/manifest.json", "cache/condition.json")

MOST_SECONDS = 10.0
MOST_KILOBYTES = 64 << 10
"""A check of these small sets takes a hundredth of either."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards`` and ``cache``, and copies of them in ``sound``."""
    folder = tmp_path_factory.mktemp("hostile")
    build_example(make_utterances(folder / "corpus", 6), folder / "shards", folder / "corpus", shard_bytes=20_000)
    example_cache(folder / "cache", open_shard_set(folder / "shards"))
    for name in ("shards", "cache"):
        shutil.copytree(folder / name, folder / "sound" / name)
    return folder


def flipped(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :]


def cut(data: bytes, at: int, value: int) -> bytes:
    return data[:at]


def zeroed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes(len(data[at : at + value])) + data[at + value :]


def full(data: bytes, at: int, value: int) -> bytes:
    """Eight bytes of ones: the largest numbers, and -1."""
    return data[:at] + b"\xff" * len(data[at : at + 8]) + data[at + 8 :]


def numbered(data: bytes, at: int, value: int) -> bytes:
    """A number in an aligned place, as hostile lengths are planted."""
    at = at // 4 * 4
    return data[:at] + (value * 0x01010101).to_bytes(8, "little")[: len(data) - at] + data[at + 8 :]


def doubled(data: bytes, at: int, value: int) -> bytes:
    return data[: at + value] + data[at:]


def removed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + data[at + value :]


HARMS = (flipped, cut, zeroed, full, numbered, doubled, removed)


def put(folder: Path, name: str, data: bytes) -> None:
    for sound in FILES:
        shutil.copy(folder / "sound" / sound, folder / sound)
    (folder / name).write_bytes(data)


def check(folder: Path) -> list[str]:
    """The findings, within bounds of time and memory; an error in words is one."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = [str(finding) for finding in check_shard_set(folder / "shards", folder / "cache", num_threads=1)]
    except CctsError as error:
        found = [str(error)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KILOBYTES
    assert time.monotonic() - began < MOST_SECONDS
    return found


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), harm=st.sampled_from(HARMS), at=st.floats(0, 1), value=st.integers(1, 600))
def test_no_byte_that_matters_can_change_unnoticed(
    folder: Path, name: str, harm: Callable[[bytes, int, int], bytes], at: float, value: int
):
    sound = (folder / "sound" / name).read_bytes()
    if not sound:
        return
    data = harm(sound, int(at * (len(sound) - 1)), value)
    put(folder, name, data)
    found = check(folder)
    assert bool(found) == (data != sound)
    assert all(line.isprintable() for line in found)


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([name for name in FILES if name.endswith((".tar", ".arrow"))]),
    harm=st.sampled_from(HARMS),
    at=st.floats(0, 1),
    value=st.integers(1, 600),
)
@example(name="shards/index.arrow", harm=full, at=0.2, value=1)
def test_bytes_that_a_manifest_was_made_to_agree_with_do_no_harm(
    folder: Path, name: str, harm: Callable[[bytes, int, int], bytes], at: float, value: int
):
    """Digests do not protect here: what is left is how the checker reads."""
    sound = (folder / "sound" / name).read_bytes()
    put(folder, name, harm(sound, int(at * (len(sound) - 1)), value))
    damage.bless_bytes((folder / name).parent)
    check(folder)


def test_a_flipped_bit_in_any_byte_of_a_blessed_batch_does_no_harm(folder: Path):
    """Every length and offset that Arrow reads of a batch is somewhere among these."""
    name = "shards/index.arrow"
    sound = (folder / "sound" / name).read_bytes()
    place = open_shard_set(folder / "sound" / "shards").manifest.shards[0].index
    for at in range(place.offset, place.offset + place.size, 37):
        put(folder, name, flipped(sound, at, at // 37))
        damage.bless_bytes(folder / "shards")
        check(folder)
