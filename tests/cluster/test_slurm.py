"""launch/slurm.sh under Slurm itself: which jobs come back, and what of."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import PATIENCE_S, Cluster, missing
from tests.cluster.runs import STEPS, Run, assert_same, write_run_file
from tests.cluster.slurm import KILL_WAIT_S, PROGRAMS_OF_SLURM, Slurm, slurm_on

pytestmark = pytest.mark.long

TRAIN = "launch/train.py"
TWO_NODES = ("--nodes=2",)
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")


@pytest.fixture(scope="module")
def slurm(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm on two hosts."""
    if reason := missing(PROGRAMS_OF_SLURM):
        pytest.skip(reason)
    with slurm_on(cluster.first(2), tmp_path_factory.mktemp("slurm") / "slurm") as running:
        yield running
        markers = [running.marker(job) for job in running.jobs()]
    assert not [marker for marker in markers if marker.exists()], "left where jobs are submitted"


def wait_for_step(slurm: Slurm, job: int, run: Run, step: int) -> None:
    """Until the job's training has come so far."""
    deadline = time.monotonic() + PATIENCE_S
    while run.steps_done < step:
        assert time.monotonic() < deadline, f"{slurm.facts(job)}\n{slurm.words(job)[-8000:]}"
        time.sleep(0.05)


def test_job_that_is_asked_to_stop_is_queued_again_and_ends_as_the_undisturbed_run(slurm, reference, material):
    run = write_run_file(material, "asked", partitions=2)
    job = slurm.submit(TWO_NODES, TRAIN, "--config", str(run.config))
    wait_for_step(slurm, job, run, 5)
    slurm.ask("scancel", "--batch", "--signal=USR1", str(job))  # as --signal=B:USR1@120 does before the time is up
    facts = slurm.wait_for(job, "PENDING")
    assert (facts["Restarts"], facts["Reason"]) == ("1", "BeginTime")
    stopped_at = run.steps_done
    assert 5 <= stopped_at < STEPS
    assert slurm.marker(job).read_text().split() == ["1", f"step-{stopped_at:08d}"]

    # Slurm would wait for two minutes. In the second of its end, slurmd takes a job that comes back for the old one.
    slurm.ask("scontrol", "update", f"JobId={job}", "StartTime=now+5")
    facts = slurm.wait_for(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.words(job)
    assert f"resuming from step-{stopped_at:08d}" in slurm.words(job)
    assert not slurm.marker(job).exists()
    assert_same(run, reference)


def test_cancelled_job_leaves_a_complete_checkpoint_and_stays_cancelled(slurm, material):
    run = write_run_file(material, "cancelled", partitions=1)
    job = slurm.submit(ONE_NODE, TRAIN, "--config", str(run.config))
    wait_for_step(slurm, job, run, 5)
    cancelled = time.monotonic()
    slurm.ask("scancel", str(job))
    slurm.wait_for(job, "CANCELLED")
    assert time.monotonic() < cancelled + KILL_WAIT_S
    assert re.search(r"the ranks have ended with exit code 75$", slurm.words(job), re.MULTILINE), slurm.words(job)
    assert "not queued again" in slurm.words(job)
    assert not slurm.marker(job).exists()
    newest = max((run.output / "checkpoints").iterdir())
    assert newest.name == f"step-{run.steps_done:08d}"
    assert (newest / "manifest.json").exists()
    time.sleep(3)
    assert slurm.facts(job)["Restarts"] == "0"


def test_mistake_in_what_was_asked_for_fails_the_job_once(slurm, material):
    run = write_run_file(material, "mistake", partitions=1)
    job = slurm.submit(ONE_NODE, TRAIN, "--config", str(run.config), "--set", "train.epoch=3")
    facts = slurm.wait_for(job, "FAILED", "COMPLETED")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    # srun has lines of its own: one per task, or one for both when they end at once.
    own = [line for line in slurm.words(job).splitlines() if line.startswith("error: ")]
    assert len(own) == 1, f"rank 0 alone speaks: {slurm.words(job)}"
    assert not slurm.marker(job).exists()
