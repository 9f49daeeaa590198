"""The files that start a run on many hosts: what the programs that read them make of them."""

import os
import subprocess
from pathlib import Path

from deepspeed.launcher.runner import fetch_hostfile

SLURM = Path("launch/slurm.sh")


def run_slurm_script(*args: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(["bash", str(SLURM), *args], env=outside, capture_output=True, text=True, check=False)


def test_launcher_reads_the_example_of_a_hostfile():
    assert fetch_hostfile("launch/hostfile.example") == {"node1": 4, "node2": 4}


def test_slurm_script_is_sound_shell():
    done = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_slurm_script_outside_a_job_teaches_and_exits_with_2():
    done = run_slurm_script("launch/train.py", "--config", "RUN.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("A run on the nodes of a Slurm job")
    assert "sbatch --nodes 8" in done.stderr
    assert "CCTS_MAX_REQUEUES" in done.stderr
    assert "#!" not in done.stderr


def test_options_for_slurm_stand_before_the_first_command():
    """Slurm reads no option below it."""
    lines = SLURM.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:USR1@120"} <= set(lines)
