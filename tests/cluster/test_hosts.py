"""What the other tests here rest on: hosts that are apart where hosts are, and gone when the test is."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from tests.helpers.processes.launching import ROOT

pytestmark = pytest.mark.long

HOLDER = """
import sys, time
from pathlib import Path
from tests.cluster.hosts import cluster_of

with cluster_of(2, Path(sys.argv[1])) as cluster:
    cluster.hosts[1].start("sleep", sys.argv[2])
    time.sleep(600)
"""


def test_hosts_reach_each_other_by_name_until_a_cable_is_pulled_out(hosts):
    first, second = hosts.hosts[:2]
    ssh = ("ssh", "-F", str(hosts.ssh_config), "-o", "ConnectTimeout=2")
    assert first.run(*ssh, second.name, "hostname") == "host1\n"
    assert second.run(*ssh, first.name, "hostname") == "host0\n"
    hosts.plug(second, in_=False)
    refused = first.start(*ssh, second.name, "hostname")
    assert refused.wait(30) == 255
    assert "timed out" in refused.words or "No route" in refused.words
    hosts.plug(second, in_=True)
    assert first.run(*ssh, second.name, "hostname") == "host1\n"


def test_hosts_have_processes_memory_and_mounts_of_their_own(hosts, tmp_path):
    first, second = hosts.hosts[:2]
    first.run("touch", "/dev/shm/mine", str(tmp_path / "ours"))
    assert second.run("ls", "/dev/shm") == ""
    assert second.run("ls", str(tmp_path)) == "ours\n"
    second.hide(tmp_path)
    assert second.run("ls", str(tmp_path)) == ""
    assert first.run("ls", str(tmp_path)) == "ours\n"
    second.show(tmp_path)
    sleeping = second.start("sleep", "1234")
    wait_until(lambda: second.processes("sleep"), timeout_s=20)
    assert first.processes("sleep") == {}
    assert "sleep" not in first.run("ps", "-e")
    second.end_all()
    assert sleeping.wait(10) != 0


def test_nothing_is_left_of_hosts_whose_test_was_killed(hosts, tmp_path):
    mark = f"98765.{time.monotonic_ns()}"
    folder = str(tmp_path / "cluster")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder, mark], cwd=ROOT)
    try:
        wait_until(lambda: f"sleep {mark}" in command_lines(mark), timeout_s=120)
        assert any("sshd" in line for line in command_lines(folder))
    finally:
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(10) == -signal.SIGKILL
    wait_until(lambda: not command_lines(mark) and not command_lines(folder), timeout_s=20)


def wait_until(happens: Callable[[], object], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def command_lines(words: str) -> list[str]:
    """Of all processes that have ``words`` in them; those that have ended have none."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if words in line]
