"""Building to a real S3 server: the bytes of a local build, whatever fails or dies on the way."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.helpers.examples.shard_examples import make_utterances
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, run_forked
from tests.helpers.servers.s3_server import ACCESS_KEY, SECRET_KEY, Rule, S3Server, s3_server

COUNT = 40
OPTIONS = ("--shard-mb", "0.012", "--max-rejected", "0.1")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain manifest of a small corpus, of which one file is missing."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        f"utterance {number},{one.audio},{one.split},{number % 7 + 1}\n"
        for number, one in enumerate(make_utterances(folder, COUNT))
    ]
    (folder / "corpus.csv").write_text("key,audio,split,valence\n" + "".join(rows) + "gone,gone.wav,Train,4\n")
    return folder / "corpus.csv"


@pytest.fixture(scope="module")
def local(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same build in a folder."""
    out = tmp_path_factory.mktemp("local") / "s"
    assert run_forked(command("manifest", table, "--out", out, "--processes", 1, *OPTIONS)).returncode == 0
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("server")) as running:
        make_bucket(running)
        yield running


def make_bucket(server: S3Server) -> None:
    for tries_left in (4, 3, 2, 1, 0):
        try:
            return files(server).mkdirs("bucket", exist_ok=True)
        except OSError:  # it has only just begun to listen
            if not tries_left:
                raise
            time.sleep(1.0)


def files(server: S3Server) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem(
        "s3", key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=server.address, skip_instance_cache=True
    )


def content(server: S3Server, place: str) -> dict[str, Any]:
    """What lies there; hidden files are looked at by name alone."""
    filesystem = files(server)
    found = {path.removeprefix(f"{place}/"): path for path in filesystem.find(place)}
    assert [name for name in found if name.startswith(".building")] == []
    return {name: filesystem.cat_file(path) for name, path in found.items() if not name.startswith(".")}


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "shards" / "build.py"), *map(str, arguments)]


def start(server: S3Server, *arguments: object) -> Forked:
    return Forked(command(*arguments), cwd=ROOT, env=environment(server.environment()), stderr=subprocess.PIPE)


def end(process: Forked) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    assert SECRET_KEY not in out + err
    assert ACCESS_KEY not in out + err
    return process.returncode, out, err


def run(server: S3Server, *arguments: object) -> tuple[int, str, str]:
    return end(start(server, *arguments))


def test_a_build_to_s3_is_the_local_one_byte_by_byte(server: S3Server, table: Path, local: dict[str, bytes]):
    code, out, err = run(server, "manifest", table, "--out", "s3://bucket/sets/one", "--processes", 2, *OPTIONS)
    assert code == 0, err
    assert "s3://bucket/sets/one: built, digest" in out
    assert content(server, "bucket/sets/one") == local


def test_requests_that_fail_are_tried_again(server: S3Server, table: Path, local: dict[str, bytes]):
    faults = ("error 500", "error 503")
    rule = Rule(place="bucket/faulty", fault_rate=0.1, methods=("PUT", "GET", "HEAD"), faults=faults, seed=3)
    server.treat(rule)
    code, _, err = run(server, "manifest", table, "--out", "s3://bucket/faulty", "--processes", 2, *OPTIONS)
    assert code == 0, err
    assert len(server.faults("bucket/faulty")) > 10
    server.treat(Rule(place="bucket/faulty"))
    assert content(server, "bucket/faulty") == local


def test_a_killed_builder_goes_on_and_uploads_no_finished_shard_again(
    server: S3Server, table: Path, local: dict[str, bytes]
):
    arguments = ("manifest", table, "--out", "s3://bucket/killed", "--processes", 1, *OPTIONS)
    builder = start(server, *arguments)
    while sum(path.endswith(".tar.json") for path in server.paths("PUT", "bucket/killed")) < 4:
        assert builder.poll() is None
    builder.send_signal(signal.SIGKILL)
    end(builder)
    assert not files(server).exists("bucket/killed/manifest.json")
    assert run(server, *arguments)[0] == 0
    assert content(server, "bucket/killed") == local
    uploads = Counter(path for path in server.paths("PUT", "bucket/killed") if path.endswith(".tar"))
    assert sum(uploads.values()) <= len(uploads) + 1  # the one that was being made
    assert run(server, *arguments)[1].startswith("s3://bucket/killed: was complete already")


def test_parts_are_joined_on_s3(server: S3Server, table: Path, local: dict[str, bytes]):
    arguments = ("manifest", table, "--out", "s3://bucket/parts", "--processes", 1, *OPTIONS)
    parts = [start(server, *arguments, "--part", f"{number}/2") for number in (1, 2)]
    assert [end(part)[0] for part in parts] == [0, 0]
    code, _, err = run(server, "join", "s3://bucket/parts", "--max-rejected", 0.1)
    assert code == 0, err
    assert content(server, "bucket/parts") == local


def test_a_bucket_that_is_not_there_gives_two_and_one_line(server: S3Server, table: Path):
    code, printed, err = run(server, "manifest", table, "--out", "s3://no-such-bucket/set", "--processes", 1, *OPTIONS)
    assert (code, printed) == (2, "")
    assert "s3://no-such-bucket/set/.building/whole.claim: cannot be written (HTTP 404" in err
    assert err.count("\n") == 1
