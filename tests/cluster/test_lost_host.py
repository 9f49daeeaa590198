"""A host that is cut off while its processes live on, and one that is only slow."""

import os
import re
import signal
import time

import pytest

from tests.cluster.many_hosts import launch_with_pdsh, launch_without_ssh, wait_well
from tests.cluster.runs import TIMEOUT_S, assert_same, write_run_file

pytestmark = pytest.mark.long

SCRIPT = "launch/train.py"
ENDS_WITHIN_S = TIMEOUT_S + 60.0
"""From the cut: the ranks' time-out, ssh's notice of it, and what a busy machine takes to end processes."""


def test_job_ends_naming_the_host_that_was_cut_off_and_running_it_again_goes_on(reference, hosts, material):
    two = hosts.first(2)
    lost = two.hosts[1]
    run = write_run_file(material, "cut-off", partitions=2, timeout_s=TIMEOUT_S)
    job = launch_with_pdsh(two, SCRIPT, *run.args)
    run.wait_for_step(13, [job])
    reported_before = len(job.words)
    two.plug(lost, in_=False)
    lost.hide(run.output)  # shared storage is behind the same cable
    cut = time.monotonic()

    assert job.wait(ENDS_WITHIN_S) not in (0, 2, 75)
    while left := two.processes(SCRIPT):
        assert time.monotonic() < cut + ENDS_WITHIN_S, f"still running: {left}"
        time.sleep(0.2)
    survivor = [line for line in job.words[reported_before:].splitlines() if line.startswith("host0: ")]
    assert any(re.search(r"\bhost1\b", line) for line in survivor), "\n".join(survivor)

    two.plug(lost, in_=True)
    lost.show(run.output)
    words = wait_well(launch_without_ssh(two, SCRIPT, *run.args))
    resumed = re.search(r"resuming from step-0*(\d+)", words)
    assert resumed is not None
    assert int(resumed[1]) >= 12
    assert_same(run, reference)


def test_host_that_is_slow_and_off_the_net_for_less_than_the_time_out_changes_nothing(reference, hosts, material):
    two = hosts.first(2)
    slow = two.hosts[1]
    run = write_run_file(material, "slow", partitions=2, timeout_s=TIMEOUT_S)
    started = launch_without_ssh(two, SCRIPT, *run.args)
    run.wait_for_step(5, started)
    (rank,) = (pid for pid, line in slow.processes(SCRIPT).items() if "deepspeed" not in line)
    os.kill(rank, signal.SIGSTOP)
    time.sleep(TIMEOUT_S / 4)
    stood_at = run.steps_done
    assert stood_at < 60, "the run was over before it could be disturbed"
    os.kill(rank, signal.SIGCONT)
    run.wait_for_step(stood_at + 3, started)
    two.plug(slow, in_=False)
    time.sleep(TIMEOUT_S / 4)
    two.plug(slow, in_=True)
    wait_well(started)
    assert_same(run, reference)
