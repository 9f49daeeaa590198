import os
import signal
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
