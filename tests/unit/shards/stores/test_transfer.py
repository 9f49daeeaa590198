"""Addresses that are taken, and one transfer: what fails, how often it is tried, what is reported of it."""

import errno
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccts_dist.errors import ConfigError, FetchError, MissingShardsError, ShardError
from ccts_dist.shards.stores.address import check_address, is_address
from ccts_dist.shards.stores.remote import open_store
from ccts_dist.shards.stores.retry import RetryPolicy
from tests.helpers.faults.flaky_store import (
    SECRET,
    Flaky,
    content,
    flaky_file_system,
    flaky_store,
    listed,
    put,
    raises,
    read,
)


@pytest.fixture(autouse=True)
def flaky() -> Iterator[type[Flaky]]:
    with flaky_file_system() as file_system:
        yield file_system


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


def test_commands_and_addresses_are_reported_from_folders() -> None:
    assert is_address("s3://bucket/set")
    assert is_address("pipe:cat x")
    assert not is_address("data/set")


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
        (OSError(errno.ENOSPC, SECRET), "no space left on device in .*name another folder in data.shard_cache"),
    ],
)
def test_fault_that_will_not_pass_is_reported_at_once_and_without_secrets(
    tmp_path: Path, flaky: type[Flaky], error: Exception, words: str
) -> None:
    file = put("a.tar", content(1))
    flaky.troubles.append(raises(error))
    with pytest.raises(ShardError, match=words) as reported:
        read(flaky_store(tmp_path), file)
    assert SECRET not in str(reported.value)
    assert reported.value.__context__ is None
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
    with pytest.raises(ShardError, match=f"is {found.sha256[:12]}, and the manifest states {wanted.sha256[:12]}"):
        read(flaky_store(tmp_path), wanted)
    assert len(flaky.opened) == 2
    assert not [path for path in tmp_path.iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("size", [10, 2_999_999, 3_000_001, 9_000_000])
def test_file_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    put("a.tar", content(1, size))
    with pytest.raises(ShardError, match=f"has {size} bytes, and the manifest states 3000000"):
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
    retry_policy = RetryPolicy(first_wait_s=0.5, longest_wait_s=30.0)
    whole = min(30.0, 0.5 * 2 ** (attempt - 1))
    assert whole / 2 <= retry_policy.wait_s(attempt, luck) <= whole
