import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ccts_dist.distributed import Ranks
from ccts_dist.errors import StopRequested
from ccts_dist.train.watch import Watch, stopped_words, where


def frame_in(filename: str):
    """The frame of a function that is called from such a source file."""
    found: list = []
    code = compile("look()", filename, "exec")
    exec(code, {"look": lambda: found.append(sys._getframe())})
    return found[0]


def test_main_thread_in_a_collective_waits_and_one_at_work_does_not():
    waiting, line = where(frame_in("/lib/torch/distributed/distributed_c10d.py"))
    assert waiting
    assert line.startswith("test_train_watch.py:")
    assert not where(frame_in("/lib/torch/nn/modules/linear.py"))[0]
    assert where(None) == (False, "")


def test_line_is_the_innermost_one_of_this_package():
    assert where(frame_in("/src/ccts_dist/loader/fetch.py"))[1] == "fetch.py:1 <module>"


def test_signal_is_raised_where_ranks_meet_and_names_its_rank():
    before = signal.getsignal(signal.SIGUSR1)
    with Watch(Ranks(rank=3), timeout_s=60.0, grace_s=60.0) as watch:
        watch.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StopRequested, match=r"^SIGUSR1 on rank 3$"):
            watch.check()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_words_name_step_and_checkpoint_or_say_that_there_is_none(tmp_path: Path):
    assert "before any step. Run the same" in stopped_words("SIGTERM on rank 1", tmp_path)
    for name in ("step-00000009", "step-00000012", "step-00000013.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert stopped_words("file STOP", tmp_path).startswith(
        "stopped on request (file STOP; STOP is removed) at step 12: complete checkpoint step-00000012. "
    )


STUCK = """
import sys, time
from pathlib import Path
from ccts_dist.distributed import Ranks
from ccts_dist.train.watch import Watch
with Watch(Ranks(), timeout_s=60.0, grace_s=1.0) as watch:
    watch.follow(Path(sys.argv[1]))
    watch.at("epoch 1/1, step 2: reading")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.integration
def test_process_that_is_stuck_ends_when_its_grace_is_over_and_says_what_remains(tmp_path: Path):
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.terminate()
        _, words = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 1
    assert words == (
        "error: stopping was asked for (SIGTERM on rank 0), and no checkpoint was complete within train.grace_s = 1 s; "
        "this rank was at epoch 1/1, step 2: reading. The newest complete checkpoint is step-00000007. Give it more "
        "time, and run the same command with --resume auto.\n"
    )
