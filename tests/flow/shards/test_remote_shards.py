"""Shards of a real S3 server and of a web server: many processes, kills, faults, a full cache, secrets."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.flow.shards.fetch_files import Listed, list_files
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, free_port
from tests.helpers.servers.s3_server import ACCESS_KEY, FAULTS, SECRET_KEY, Rule, S3Server, s3_server

HASTY = {"attempts": 10, "stall_s": 2.0, "first_wait_s": 0.05, "longest_wait_s": 0.5}


def make_files(folder: Path, count: int = 10, size: int = 1_000_000) -> list[Listed]:
    """Files with names as shards have them, and no two of one size."""
    folder.mkdir()
    for number in range(count):
        data = random.Random(number).randbytes(size + number)
        (folder / f"Test%2F1-{number:06d}.tar").write_bytes(data)
    return list_files(folder)


def start(root: str, files: list[Listed], env: dict[str, str], *readers: dict[str, Any], **options: Any) -> Forked:
    """A process that reads the files; for each of ``readers`` one, if there are any, with options of its own."""
    given = {"root": root, "files": [asdict(file) for file in files]} | options
    command = [sys.executable, "-m", "tests.flow.shards.fetch_files"]
    command += [json.dumps(given | reader, default=str) for reader in readers or ({},)]
    return Forked(command, cwd=ROOT, env=environment(env), stderr=subprocess.PIPE)


def end(process: Forked) -> tuple[int, str, str]:
    """Exit code and words of a process; none of them is a secret."""
    out, err = process.communicate(timeout=180)
    assert SECRET_KEY not in out + err
    assert ACCESS_KEY not in out + err
    assert "Signature" not in out + err.replace("SignatureDoesNotMatch", "")
    return process.returncode, out, err


def end_well(process: Forked) -> list[dict[str, Any]]:
    """The statistics of each reader."""
    code, out, err = end(process)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def sizes(cache: Path) -> dict[str, int]:
    """The cache's files now; those that vanish meanwhile are omitted."""
    found = {}
    for path in list(cache.glob("*")) + list(cache.glob(".*.partial")):
        try:
            found[path.name] = path.stat().st_size
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests: starting it takes longest. Each has a place of its own."""
    with s3_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@contextmanager
def web_server(folder: Path, log: Path) -> Iterator[str]:
    """Python's own web server, which knows no ranges; the address it serves a folder under."""
    with log.open("wb") as words:
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"],
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
        )
        assert server.stdout is not None
        try:
            port = re.search(r"port (\d+)", server.stdout.readline())
            assert port
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


@pytest.mark.parametrize("ahead", [False, True], ids=["when-needed", "ahead-of-need"])
def test_many_processes_fetch_each_shard_once(tmp_path: Path, server: S3Server, ahead: bool) -> None:
    files, place, cache = make_files(tmp_path / "set"), f"bucket/once/{ahead}", tmp_path / "cache"
    server.upload(tmp_path / "set", place)
    seeds = [{"seed": seed} for seed in range(5)]
    counted = end_well(start(f"s3://{place}", files, server.environment(), *seeds, cache=cache, ahead=ahead))
    assert len(counted) == 5
    assert server.gets(place) == {file.name: 1 for file in files}
    assert sum(count["num_files"] for count in counted) == len(files)
    assert sum(count["size_bytes"] for count in counted) == sum(file.size_bytes for file in files)
    assert sorted(sizes(cache).values()) == [0, *(file.size_bytes for file in files)]  # and the lock


def test_web_server_without_ranges_will_do(tmp_path: Path) -> None:
    files = make_files(tmp_path / "set")
    with web_server(tmp_path, tmp_path / "log") as address:
        seeds = [{"seed": seed} for seed in range(3)]
        options = {"cache": tmp_path / "cache", "ahead": True}
        counted = end_well(start(f"{address}/set", files, {"NO_PROXY": "127.0.0.1"}, *seeds, **options))
    assert sum(count["num_files"] for count in counted) == len(files)
    answers = [line for line in (tmp_path / "log").read_text().splitlines() if "GET" in line]
    assert len(answers) == len(files)
    assert all(" 200 " in line for line in answers)


def test_process_that_is_killed_while_fetching_leaves_nothing_in_the_way(tmp_path: Path, server: S3Server) -> None:
    files, place, cache = make_files(tmp_path / "set", count=4), "bucket/killed", tmp_path / "cache"
    server.upload(tmp_path / "set", place)
    server.treat(Rule(place=place, bytes_per_s=500_000))
    victim = start(f"s3://{place}", files, server.environment(), cache=cache, ahead=True)
    deadline = time.monotonic() + 120
    while not any(name.endswith(".partial") and size > 100_000 for name, size in sizes(cache).items()):
        assert time.monotonic() < deadline, "nothing came for two minutes"
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    halves = [name for name in sizes(cache) if name.endswith(".partial")]
    assert len(halves) > 1
    # Who reads the first file alone finds the others' halves, which nobody fetches any more.
    end_well(start(f"s3://{place}", files[:1], server.environment(), {}, {}, cache=cache))
    assert not [name for name in sizes(cache) if name.endswith(".partial")]
    assert server.gets(place)[files[0].name] <= 2


def test_cache_never_exceeds_its_limit(tmp_path: Path, server: S3Server) -> None:
    files, place, cache = make_files(tmp_path / "set", count=12), "bucket/limit", tmp_path / "cache"
    server.upload(tmp_path / "set", place)
    limit, most = 3_500_000, 0
    readers = [{"seed": seed, "ahead": seed % 2 == 0} for seed in range(4)]
    options = {"cache": cache, "cache_bytes": limit, "rounds": 3}
    process = start(f"s3://{place}", files, server.environment(), *readers, **options)
    while process.poll() is None:
        most = max(most, sum(sizes(cache).values()))
        time.sleep(0.004)
    end_well(process)
    assert server.gets(place).total() > len(files)
    assert 2_000_000 < most <= limit


def test_faulty_store_gives_the_same_bytes(tmp_path: Path, server: S3Server) -> None:
    files, place = make_files(tmp_path / "set", count=20, size=300_000), "bucket/faulty"
    server.upload(tmp_path / "set", place)
    server.treat(Rule(place=place, fault_rate=0.3, seed=7, stall_s=8.0))
    seeds = [{"seed": seed} for seed in range(2)]
    options = {"cache": tmp_path / "cache", "ahead": True, "retry_policy": HASTY}
    end_well(start(f"s3://{place}", files, server.environment(), *seeds, **options))
    assert len(set(server.faults(place))) >= 4, server.faults(place)


def test_store_that_only_fails_is_given_up_in_plain_words(tmp_path: Path, server: S3Server) -> None:
    files = make_files(tmp_path / "set", count=1, size=200_000)
    retry_policy = {"attempts": 2, "stall_s": 2.0, "first_wait_s": 0.05, "longest_wait_s": 0.05}
    readers = []
    for fault in FAULTS:
        place = f"bucket/{fault.replace(' ', '-')}"
        server.upload(tmp_path / "set", place)
        server.treat(Rule(place=place, fault_rate=1.0, faults=[fault], stall_s=8.0))
        readers.append({"root": f"s3://{place}", "cache": tmp_path / fault})
    code, out, err = end(start("", files, server.environment(), *readers, retry_policy=retry_policy))
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    reported = sorted(line for line in err.splitlines() if line.startswith("error: "))
    for fault, line in zip(sorted(FAULTS), reported, strict=True):
        assert line.startswith(f"error: s3://bucket/{fault.replace(' ', '-')}/{files[0].name}: ")
        assert "given up after 2 tries" in line


def test_what_cannot_be_had_is_reported_at_once_in_plain_words(tmp_path: Path, server: S3Server) -> None:
    files, place = make_files(tmp_path / "set", count=1), "bucket/there"
    server.upload(tmp_path / "set", place)
    nowhere = {"FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    retry_policy = {"attempts": 2, "stall_s": 5.0, "first_wait_s": 0.05}
    cases = {
        "is not there (HTTP 404 NoSuchKey)": {"root": "s3://bucket/else"},
        "is not there (HTTP 404 NoSuchBucket)": {"root": "s3://nobucket/else"},
        "may not be read (NoCredentialsError)": {"env": {"AWS_ACCESS_KEY_ID": None, "HOME": str(tmp_path)}},
        "given up after 2 tries. See whether the store is up": {"env": nowhere},
    }
    readers = [{"cache": tmp_path / str(number)} | case for number, case in enumerate(cases.values())]
    code, out, err = end(start(f"s3://{place}", files, server.environment(), *readers, retry_policy=retry_policy))
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    for words in cases:
        assert words in err
    assert server.gets("bucket/else").total() == 1


def test_credentials_that_the_store_does_not_know_are_reported_of_but_not_reported(
    tmp_path: Path, server: S3Server
) -> None:
    files, place = make_files(tmp_path / "set", count=1), "bucket/guarded"
    server.upload(tmp_path / "set", place)
    with server.guarded():
        code, _, err = end(start(f"s3://{place}", files, server.environment(), cache=tmp_path / "cache"))
    assert code == 1
    assert "may not be read (HTTP 403 InvalidAccessKeyId)" in err
