"""launch/slurm.sh hands its words on; of a start that is not the job's first, with another place to go on from."""

import os
import subprocess
from pathlib import Path

import pytest

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
shift 4
printf '%s\\n' "$@" >"$TOLD"
exit 1
"""


def words_of(place: Path, restarts: int, *words: str) -> list[str]:
    """What the ranks are started with, after the interpreter."""
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n"), ("python", "#!/bin/bash\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{place}:{os.environ['PATH']}", "TOLD": str(place / "told"), "CCTS_PYTHON": str(place / "python"),
        "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(place), "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    done = subprocess.run(["bash", "launch/slurm.sh", *words], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    return (place / "told").read_text().splitlines()[2:]


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
