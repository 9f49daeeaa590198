"""The variables by which launchers give a process its rank, translated into those of torch's launcher.

torch, Accelerate and DeepSpeed read RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR. ``deepspeed``, ``torchrun`` and
``accelerate launch`` set them; ``mpirun`` and ``srun`` have names of their own; a PyTorchJob of Kubernetes sets some.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

_DEFAULT_PORT = "29500"
"""torch's and DeepSpeed's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """A launcher's variables, by what they hold."""

    rank: str
    num_ranks: str
    local_rank: str
    local_size: str


_FAMILIES: tuple[_Names, ...] = (
    # Open MPI, and PRRTE below it.
    _Names(
        rank="OMPI_COMM_WORLD_RANK",
        num_ranks="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Names(
        rank="MV2_COMM_WORLD_RANK",
        num_ranks="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_size="MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    # MPICH and Intel MPI; below srun's PMI the last two are Slurm's to set.
    _Names(rank="PMI_RANK", num_ranks="PMI_SIZE", local_rank="MPI_LOCALRANKID", local_size="MPI_LOCALNRANKS"),
    _Names(rank="FLUX_TASK_RANK", num_ranks="FLUX_JOB_SIZE", local_rank="FLUX_TASK_LOCAL_ID", local_size=""),
    _Names(
        rank="JSM_NAMESPACE_RANK",
        num_ranks="JSM_NAMESPACE_SIZE",
        local_rank="JSM_NAMESPACE_LOCAL_RANK",
        local_size="",
    ),
    # Of the step: the job's SLURM_NTASKS is also set where a shell or a batch script runs alone.
    _Names(rank="SLURM_PROCID", num_ranks="SLURM_STEP_NUM_TASKS", local_rank="SLURM_LOCALID", local_size=""),
)
"""In the order in which they are believed: MPI may have been started by Slurm."""


def adopt_launcher(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set torch's variables from those of the launcher that started this process; leave what is set already.

    Nothing is set for a process that was started alone. ``accelerate launch --cpu`` hides the GPUs, as it asks.
    """
    if environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t"):
        environ["CUDA_VISIBLE_DEVICES"] = ""
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return
    names = next((names for names in _FAMILIES if names.rank in environ and names.num_ranks in environ), None)
    if names is None or environ[names.num_ranks].strip() in ("0", "1"):
        return
    slurm = _slurm_facts(environ) if environ.get("SLURM_STEP_NUM_TASKS") == environ[names.num_ranks] else {}
    found = {
        "RANK": environ[names.rank],
        "WORLD_SIZE": environ[names.num_ranks],
        "LOCAL_RANK": environ.get(names.local_rank, environ.get("SLURM_LOCALID") if slurm else None),
        "LOCAL_WORLD_SIZE": environ.get(names.local_size, slurm.get("LOCAL_WORLD_SIZE")),
        "GROUP_WORLD_SIZE": slurm.get("GROUP_WORLD_SIZE"),
    }
    alone = found["LOCAL_WORLD_SIZE"] == found["WORLD_SIZE"]
    found["MASTER_ADDR"] = "127.0.0.1" if alone else slurm.get("MASTER_ADDR")
    found["MASTER_PORT"] = slurm.get("MASTER_PORT", _DEFAULT_PORT)
    for name, value in found.items():
        if value is not None:
            environ.setdefault(name, value)


_LONE_RANKS = ("PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE")
"""Variables of launchers that do not report how many ranks they have started."""


def launcher_conflict(environ: Mapping[str, str] = os.environ) -> str:
    """The reason why ranks of one job would each train alone, by what their launcher states; "" for none.

    Call it after ``adopt_launcher``.
    """
    given = [name for name in ("RANK", "WORLD_SIZE") if name in environ]
    number = environ[given[0]] if len(given) == 1 else ""
    if number.isdecimal() and number != {"RANK": "0", "WORLD_SIZE": "1"}[given[0]]:
        missing = "WORLD_SIZE" if given == ["RANK"] else "RANK"
        return (
            f"environment variable {given[0]} = {number!r} is set and {missing} is not: each process would train "
            "alone. Launchers set both; unset it to start one rank."
        )
    for names in _FAMILIES:
        many = environ.get(names.num_ranks, "1") not in ("0", "1") and names.rank in environ
        if many and environ.get("WORLD_SIZE") == "1" and not any(name in environ for name in _SET_BY_LAUNCHERS):
            return (
                f"environment variables WORLD_SIZE = '1' and {names.num_ranks} = {environ[names.num_ranks]!r}: each "
                "process would train alone. Unset RANK and WORLD_SIZE before the launcher is started."
            )
    if not given:
        ranks = [*(names.rank for names in _FAMILIES), *_LONE_RANKS]
        for name in ranks:
            if environ.get(name, "0") != "0":
                return (
                    f"environment variable {name} = {environ[name]!r}: a launcher has started several ranks, and "
                    "nothing reports how many. Set RANK, WORLD_SIZE and MASTER_ADDR for each, or start with torchrun."
                )
    return ""


_SET_BY_LAUNCHERS = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_SIZE", "GROUP_WORLD_SIZE")
"""Variables that ``deepspeed`` and ``torchrun`` set for each rank, below another launcher too: a job for each host."""


def _slurm_facts(environ: Mapping[str, str]) -> dict[str, str]:
    """The step's hosts, this host's tasks, and where its first task can be met."""
    facts = {}
    tasks = _tasks_per_host(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    host = environ.get("SLURM_NODEID", "0")
    if host.isdecimal() and int(host) < len(tasks):
        facts["LOCAL_WORLD_SIZE"] = str(tasks[int(host)])
    if "SLURM_STEP_NUM_NODES" in environ:
        facts["GROUP_WORLD_SIZE"] = environ["SLURM_STEP_NUM_NODES"]
    if "SLURM_STEP_NODELIST" in environ:
        facts["MASTER_ADDR"] = first_host(environ["SLURM_STEP_NODELIST"])
    if environ.get("SLURM_JOB_ID", "").isdecimal():
        # Two jobs of one host must not meet; launch/slurm.sh takes the same.
        facts["MASTER_PORT"] = str(20_000 + int(environ["SLURM_JOB_ID"]) % 20_000)
    return facts


def _tasks_per_host(words: str) -> list[int]:
    """Tasks of each host, of Slurm's "4(x2),3"."""
    tasks: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", words):
        tasks += [int(number)] * int(times or 1)
    return tasks


def first_host(nodes: str) -> str:
    """The first name of a list of hosts as Slurm writes it: ``gpu[07-09,12],login`` gives ``gpu07``."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    assert first is not None, "it matches nothing as well"
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())
