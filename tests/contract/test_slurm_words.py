"""launch/slurm.sh hands its words on; of a start that is not the job's first, with another place to go on from."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
shift 4
printf '%s\\n' "$@" >"$TOLD"
exit 1
"""


TASK = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
ulimit -c >"$TOLD"
export SLURMD_NODENAME=node1
bash -c "$3" rank env >>"$TOLD"
exit 1
"""
"""An srun that runs one task, which prints its limit of core files and its environment."""


def words_of(place: Path, restarts: int, *words: str) -> list[str]:
    """What the ranks are started with, after the interpreter."""
    run(place, {"SLURM_RESTART_COUNT": str(restarts)}, *words)
    return (place / "told").read_text().splitlines()[2:]


def run(place: Path, settings: Mapping[str, str], *words: str, srun: str = SRUN) -> str:
    """Run the script without Slurm; what it prints on stderr."""
    programs = {
        "srun": srun,
        "scontrol": "#!/bin/bash\nprintf '%s\\n' node1 node2\n",
        "python": "#!/bin/bash\n",
        "getent": "#!/bin/bash\necho 10.0.0.2 STREAM $2\n",
        "ip": "#!/bin/bash\necho 10.0.0.2 dev ib7 src 10.0.0.1\n",
    }
    for name, text in programs.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{place}:{os.environ['PATH']}", "TOLD": str(place / "told"), "CCTS_PYTHON": str(place / "python"),
        "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(place), "SLURM_JOB_NODELIST": "node[1-2]", **settings,
    }  # fmt: skip
    done = subprocess.run(["bash", "launch/slurm.sh", *words], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    return done.stderr


TRAIN = ["launch/train.py", "--config", "a run.toml"]


@pytest.mark.parametrize(
    ("restarts", "words", "handed_on"),
    [
        (0, TRAIN, TRAIN),
        (0, [*TRAIN, "--resume", "step-00000040"], [*TRAIN, "--resume", "step-00000040"]),
        (1, TRAIN, [*TRAIN, "--resume", "auto"]),
        (2, [*TRAIN, "--resume", "step-00000040", "--set", "a=1"], [*TRAIN, "--set", "a=1", "--resume", "auto"]),
        (1, [*TRAIN, "--resume=step-00000040"], [*TRAIN, "--resume", "auto"]),
        (1, ["launch/cache_teacher.py", "--out", "C"], ["launch/cache_teacher.py", "--out", "C"]),
    ],
)
def test_later_starts_go_on_from_the_newest_checkpoint(tmp_path: Path, restarts, words, handed_on):
    assert words_of(tmp_path, restarts, *words) == handed_on


def task(place: Path, settings: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A task's limit of core files and the variables of its network."""
    run(place, {"SLURM_NNODES": "2", **settings}, *TRAIN, srun=TASK)
    limit, *lines = (place / "told").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "_SOCKET_IFNAME=" in line)
    return limit, variables


def test_interface_that_is_found_is_gloos_and_one_that_is_given_is_nccls_too(tmp_path: Path):
    assert task(tmp_path, {}) == ("0", {"GLOO_SOCKET_IFNAME": "ib7"})
    assert task(tmp_path, {"CCTS_IFNAME": "eth1"})[1] == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "eth1"}
    assert task(tmp_path, {"SLURM_NNODES": "1"})[1] == {}


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, True),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "3"}, True),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "4"}, False),
        ({}, False),
    ],
)
def test_few_cores_for_a_rank_of_a_gpu_are_warned_of(tmp_path: Path, settings, warns):
    words = run(tmp_path, settings, *TRAIN)
    assert ("core(s) for each rank of a GPU" in words) is warns
