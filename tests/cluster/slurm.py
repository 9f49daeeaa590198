"""Slurm on the hosts of a cluster: munge on each, slurmctld on the first, slurmd on all; ended with the block."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import PATIENCE_S, PROGRAMS, Cluster, Host, Started
from tests.helpers.processes.launching import ROOT

SCRIPT = "launch/slurm.sh"

PROGRAMS_OF_SLURM = {
    **PROGRAMS,
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
KILL_WAIT_S = 30
"""Seconds from Slurm's SIGTERM to its SIGKILL, Slurm's own default."""

# Ports as usual: every host has all of its own. No accounting, no control groups, whole nodes.
_CONF = """
ClusterName=tests
SlurmctldHost={first}({first_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
MpiDefault=none
JobRequeue=1
KillWait={kill_wait}
ReturnToService=2
SchedulerParameters=sched_min_interval=100000,sched_interval=2,bf_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """A Slurm that is up."""

    first: Host
    folder: Path

    @property
    def _env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *argv: str, env: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands on the first host; what it states."""
        return self.first.run(*argv, env={**self._env, **(env or {})})

    def submit(self, options: Sequence[str], *command: str, env: Mapping[str, str] | None = None) -> int:
        """``sbatch`` of launch/slurm.sh in the project's folder; the job's number."""
        output = f"--output={self.folder}/job-%j.out"
        return int(self.ask("sbatch", "--parsable", output, *options, SCRIPT, *command, env=env).split(";")[0])

    def marker(self, job: int) -> Path:
        """What the script writes where it was submitted when the job is to come back."""
        return ROOT / f"slurm-{job}.requeue"

    def words(self, job: int) -> str:
        """What a job has reported so far, over all its starts."""
        file = self.folder / f"job-{job}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def facts(self, job: int) -> dict[str, str]:
        """What ``scontrol show job`` states."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", str(job))))

    def jobs(self) -> list[int]:
        """All jobs that Slurm remembers."""
        return [int(number) for number in self.ask("squeue", "--noheader", "--states=all", "--format=%i").split()]

    def wait_for(self, job: int, *states: str, timeout_s: float = PATIENCE_S) -> dict[str, str]:
        """The job's facts once it is in one of some states."""
        deadline = time.monotonic() + timeout_s
        while (facts := self.facts(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{facts}\n{self.words(job)[-8000:]}\n{self.logs()}"
            time.sleep(0.3)
        return facts

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_on(cluster: Cluster, folder: Path) -> Iterator[Slurm]:
    """Slurm on all hosts of a cluster for the duration of the block."""
    (folder / "state").mkdir(parents=True)
    hosts = cluster.hosts
    names = [f"NodeName={host.name} NodeAddr={host.address} CPUs=2 State=UNKNOWN" for host in hosts]
    conf = _CONF.format(
        first=hosts[0].name,
        first_address=hosts[0].address,
        folder=folder,
        kill_wait=KILL_WAIT_S,
        nodes="\n".join(names),
    )
    (folder / "slurm.conf").write_text(conf)
    (folder / "munge.key").write_bytes(bytes(range(128)))
    (folder / "munge.key").chmod(0o400)
    daemons: list[Started] = []
    try:
        key = f"--key-file={folder}/munge.key"
        places = [f"--{what}=/run/munge.{what.removesuffix('-file')}" for what in ("socket", "pid-file", "seed-file")]
        for host in hosts:
            log = f"--log-file={folder}/munge-{host.name}.log"
            daemons += [host.start("munged", "--foreground", "--force", key, log, *places)]
        for host in hosts:
            host.run("bash", "-c", "until munge --socket=/run/munge.socket -n >/dev/null 2>&1; do sleep 0.1; done")
        slurm = Slurm(first=hosts[0], folder=folder)
        conf_option = ("-f", str(folder / "slurm.conf"))
        daemons.append(hosts[0].start("slurmctld", "-D", *conf_option))
        daemons += [host.start("slurmd", "-D", "-N", host.name, *conf_option) for host in hosts]
        _wait_until_idle(slurm, len(hosts), daemons)
        yield slurm
    finally:
        for host in hosts:
            host.end_all()
        for daemon in daemons:
            daemon.wait(20)


def _wait_until_idle(slurm: Slurm, num_hosts: int, daemons: list[Started]) -> None:
    deadline = time.monotonic() + 60
    while True:
        asked = slurm.first.start("sinfo", "--noheader", "--Node", "--format=%t", env=slurm._env)
        if asked.wait(60) == 0 and asked.words.split() == ["idle"] * num_hosts:
            return
        reported = "\n".join(daemon.words for daemon in daemons)
        assert time.monotonic() < deadline, f"{asked.words}\n{reported}\n{slurm.logs()}"
        time.sleep(0.3)
