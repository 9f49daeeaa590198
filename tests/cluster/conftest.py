"""Hosts, shards and a reference run, made once for all tests; skipped, with what to do, where hosts cannot be made."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.hosts import PROGRAMS, Cluster, cluster_of, missing
from tests.cluster.many_hosts import launch_with_pdsh, launch_without_ssh, wait_well
from tests.cluster.runs import Run, write_run_file
from tests.helpers.models.small_teacher import save_small_teacher
from tests.helpers.processes.small_runs import build_two_kinds, make_cache


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a speech + text teacher, and its cache, on storage that all hosts share."""
    folder = tmp_path_factory.mktemp("shared")
    shard_set = build_two_kinds(folder)
    make_cache(save_small_teacher(folder / "teacher"), shard_set, folder / "cache")
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts."""
    if reason := missing(PROGRAMS):
        pytest.skip(reason)
    with cluster_of(3, tmp_path_factory.mktemp("cluster") / "cluster") as three:
        yield three


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[Cluster]:
    """The same, with nothing left running after the test."""
    yield cluster
    for host in cluster.hosts:
        host.end_all()


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, material: Path) -> Run:
    """A run on two hosts by pdsh, whose shards lie in a store."""
    two = cluster.first(2)
    with _served(two, material) as address:
        run = write_run_file(material, "two-hosts", partitions=2, shards=f"{address}/shards")
        wait_well([launch_with_pdsh(two, "launch/train.py", *run.args)])
    return run


@pytest.fixture(scope="session")
def reference(cluster: Cluster, material: Path) -> Run:
    """A run that nobody disturbed; what disturbed ones on two hosts are compared with."""
    run = write_run_file(material, "reference", partitions=2)
    wait_well(launch_without_ssh(cluster.first(2), "launch/train.py", *run.args))
    return run


@contextmanager
def _served(cluster: Cluster, folder: Path) -> Iterator[str]:
    """A folder as a web server on the first host gives it out; its address."""
    first = cluster.hosts[0]
    server = first.start(sys.executable, "-m", "http.server", "--directory", str(folder), "8000")
    try:
        yield f"http://{first.address}:8000"
    finally:
        for pid in first.processes("http.server"):
            os.kill(pid, signal.SIGKILL)
        server.wait(10)
