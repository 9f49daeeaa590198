"""Places that builds are written to: which are refused, and what both kinds promise."""

import hashlib
from pathlib import Path

import pytest

from ccts_dist.errors import ConfigError, ShardError
from ccts_dist.shards.build.output import BUILDING, FolderOutput, Output, open_output
from ccts_dist.shards.build.output_remote import AddressOutput
from ccts_dist.shards.stores.retry import RetryPolicy

SECRET = "recognisable-secret"


@pytest.fixture(params=["folder", "address"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    (tmp_path / "out").mkdir()
    if request.param == "folder":
        return FolderOutput(tmp_path / "out")
    return AddressOutput(f"local://{tmp_path}/out", RetryPolicy(attempts=2, first_wait_s=0.0))


def publish(output: Output, name: str, data: bytes) -> tuple[str, dict]:
    with output.workplace(name) as path:
        path.write_bytes(data)
        facts = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return output.publish(path, name, **facts), facts


def test_what_is_published_is_there_and_known_again(output: Output, tmp_path: Path):
    tag, facts = publish(output, "a.tar", b"shard")
    assert (tmp_path / "out" / "a.tar").read_bytes() == b"shard"
    assert output.holds("a.tar", **facts, tag=tag)
    (tmp_path / "out" / "a.tar").write_bytes(b"shart")
    assert not output.holds("a.tar", **facts, tag=tag)
    (tmp_path / "out" / "a.tar").write_bytes(b"longer")
    assert not output.holds("a.tar", **facts, tag=tag)
    assert not output.holds("b.tar", **facts, tag=tag)


def test_small_files_are_written_read_listed_and_deleted(output: Output):
    assert output.read("x") is None
    assert output.names(BUILDING) == []
    with output.claim(None):
        output.write(f"{BUILDING}/b", b"1")
        output.write(f"{BUILDING}/a", b"2")
        output.write(f"{BUILDING}/a", b"3")
        assert output.read(f"{BUILDING}/a") == b"3"
        assert {"a", "b"} <= set(output.names(BUILDING))
    output.write("top", b"4")
    output.delete([f"{BUILDING}/a", f"{BUILDING}/none"])
    assert output.read(f"{BUILDING}/a") is None
    output.clear_work()
    assert output.names(BUILDING) == []
    assert output.read("top") == b"4"


def test_what_arrives_otherwise_is_refused(tmp_path: Path):
    output = AddressOutput(f"local://{tmp_path}/out", RetryPolicy(attempts=2, first_wait_s=0.0))
    (tmp_path / "out").mkdir()
    with output.workplace("a.tar") as path:
        path.write_bytes(b"shard")
        with pytest.raises(ShardError, match=r"a\.tar: is [0-9a-f]{12}, and the manifest states 000000000000"):
            output.publish(path, "a.tar", size_bytes=5, sha256="0" * 64)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (f"s3://key:{SECRET}@bucket/set", "holds a user, a password or something that is no host"),
        (f"s3://bucket/set?secret={SECRET}", "may be a signed or chained address"),
        (f"pipe:{SECRET}", "pipe: addresses run a shell"),
        ("https://127.0.0.1/set", "https cannot be built to"),
        ("memory://set", "memory cannot be built to"),
        ("nonsense://set", "cannot be read here"),
    ],
)
def test_an_address_that_cannot_be_built_to_is_refused_without_telling_secrets(out: str, words: str):
    with pytest.raises(ConfigError, match=words) as refused:
        open_output(out)
    assert SECRET not in str(refused.value)


def test_a_file_address_is_a_folder(tmp_path: Path):
    assert open_output(f"file://{tmp_path}/x") == FolderOutput(tmp_path / "x")
