"""Loader workers of a training process that ends without letting them go."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.write import build_shard_set

PROGRAM = """
import multiprocessing, os, signal, sys
from multiprocessing import forkserver

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.shards.read import open_shard_set

if __name__ == "__main__":
    loader = Loader(
        open_shard_set(sys.argv[1]), ("Train",), batch=BatchConfig(global_utterances=2),
        data=DataConfig(shards="", workers=2), targets=("valence",), seed=0, ranks=Ranks(),
    )
    steps = loader.epoch(0)
    next(steps)
    workers = [child.pid for child in multiprocessing.active_children()]
    print(*workers, forkserver._forkserver._forkserver_pid, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(3)
"""


def is_running(pid: int) -> bool:
    """False too for a process that has ended and only waits to be collected."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("ending", "exit_code"), [("killed", -9), ("left early", 3)])
def test_workers_and_their_server_end_when_the_training_process_has(tmp_path, ending, exit_code):
    utterances = []
    for number in range(20):
        audio = tmp_path / f"{number}.wav"
        soundfile.write(audio, np.zeros(1_600 + number, dtype=np.int16), 16_000)
        labels = {"valence": number / 20}
        utterances.append(Utterance(key=f"u{number}", audio=audio, split="Train", labels=labels, scale=(1.0, 7.0)))
    shards = tmp_path / "shards"
    build_shard_set(utterances, shards, corpus="silence", release="1", scale=(1.0, 7.0), targets=DIMENSIONS)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    # Into a file: a pipe would stay open, and be waited for, as long as a worker lives.
    with open(tmp_path / "pids", "w+") as output:
        command = [sys.executable, str(program), str(shards), ending]
        assert subprocess.run(command, stdout=output, timeout=180).returncode == exit_code
        output.seek(0)
        pids = [int(pid) for pid in output.read().split()]
    assert len(pids) == 3
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [pid for pid in pids if is_running(pid)] == []
