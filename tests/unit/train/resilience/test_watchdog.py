import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ccts_dist.distributed import Ranks, sum_over_ranks
from ccts_dist.errors import StopRequested
from ccts_dist.train.resilience.heartbeat import (
    LOST_A_PEER,
    Heartbeat,
    heartbeats_folder,
    read_heartbeats,
    stuck_ranks,
)
from ccts_dist.train.resilience.watchdog import _WAITS_ON_GPU, Watchdog, stopped_words, where
from ccts_dist.train.zero.engine import Engine
from ccts_dist.train.zero.state import ZeroState


def frame_in(filename: str):
    """The frame of a function that is called from such a source file."""
    found: list = []
    code = compile("look()", filename, "exec")
    exec(code, {"look": lambda: found.append(sys._getframe())})
    return found[0]


def test_main_thread_in_a_collective_waits_and_one_at_work_does_not():
    waiting, line = where(frame_in("/lib/torch/distributed/distributed_c10d.py"))
    assert waiting
    assert line.startswith("test_watchdog.py:")
    assert not where(frame_in("/lib/torch/nn/modules/linear.py"))[0]
    assert where(None) == (False, "")


def frame_within(filename: str, function: str):
    """The frame of a function of that name in such a source file."""
    found: list = []
    code = compile(f"def {function}(): look()\n{function}()", filename, "exec")
    exec(code, {"look": lambda: found.append(sys._getframe())})
    return found[0]


def test_rank_that_is_stuck_is_named_when_its_peers_wait_for_the_gpu_outside_any_collective():
    """NCCL's collectives return at once: whoever waits does so where a number is copied from the GPU."""
    waiting = frame_within("/src/ccts_dist/train/engine.py", "step")
    at_work = frame_within("/src/ccts_dist/train/engine.py", "forward")

    def named(*, on_gpu: bool) -> dict[int, str]:
        return stuck_ranks(
            {
                rank: Heartbeat(
                    rank=rank, host=f"node{rank // 8}", pid=1, started=0, place_number=40,
                    waiting=where(at_work if rank == 5 else waiting, on_gpu=on_gpu)[0],
                )
                for rank in range(64)
            }
        )  # fmt: skip

    assert named(on_gpu=True) == {5: "is stuck"}
    assert named(on_gpu=False) == {}, "on a CPU whoever is there computes"


def test_functions_that_wait_for_the_gpu_are_there_under_their_names():
    functions = [Engine.step, sum_over_ranks, ZeroState.gather]
    codes = [inspect.unwrap(function).__code__ for function in functions]
    assert {(Path(code.co_filename).name, code.co_name) for code in codes} == _WAITS_ON_GPU


def test_line_is_the_innermost_one_of_this_package():
    assert where(frame_in("/src/ccts_dist/loader/fetch.py"))[1] == "fetch.py:1 <module>"


def test_signal_is_raised_where_ranks_meet_and_names_its_rank():
    before = signal.getsignal(signal.SIGUSR1)
    with Watchdog(Ranks(rank=3), timeout_s=60.0, stop_grace_s=60.0) as watch:
        watch.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StopRequested, match=r"^SIGUSR1 on rank 3$"):
            watch.check()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_words_name_step_and_checkpoint_or_state_that_there_is_none(tmp_path: Path):
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
from ccts_dist.train.resilience.watchdog import Watchdog
with Watchdog(Ranks(), timeout_s=60.0, stop_grace_s=1.0) as watch:
    watch.follow(Path(sys.argv[1]))
    watch.at("epoch 1/1, step 2: reading")
    print("ready", flush=True)
    time.sleep(600)
"""


WAITS_FOR_NCCL = """
import sys, time
from pathlib import Path
from ccts_dist.distributed import Ranks
from ccts_dist.train.resilience import watchdog as module
from ccts_dist.train.resilience.heartbeat import Heartbeat, heartbeats_folder, write_heartbeat
module._PATIENCE_S = 0.5
with module.Watchdog(Ranks(num_ranks=2), timeout_s=600.0, stop_grace_s=60.0, on_gpu=True) as watch:
    watch.follow(Path(sys.argv[1]))
    watch.at("epoch 1/1, step 2", brief=True)
    heartbeat = Heartbeat(rank=1, host="elsewhere", pid=7, started=7, left="KeyError: 'x'")
    write_heartbeat(heartbeats_folder(Path(sys.argv[1])), heartbeat)
    exec(compile("def step(): time.sleep(600)\\nstep()", "/src/ccts_dist/train/engine.py", "exec"), {"time": time})
"""


@pytest.mark.integration
def test_rank_that_waits_for_the_gpu_ends_soon_after_a_peer_has_left_and_blames_only_that(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_NCCL, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "error: rank 1 on elsewhere (process 7), last seen at its start: left: KeyError: 'x'. All ranks end. There is "
        "no complete checkpoint yet. Mend the cause, and start again.\n"
    )
    # A peer that reaches its own limit in the same moment must not take this rank for the lost one.
    assert read_heartbeats(heartbeats_folder(tmp_path), 2)[0].left == LOST_A_PEER


@pytest.mark.integration
def test_process_that_is_stuck_ends_when_its_grace_is_over_and_states_what_remains(tmp_path: Path):
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
        "error: stopping was asked for (SIGTERM on rank 0), and no checkpoint was complete within "
        "train.stop_grace_s = 1 s; this rank was at epoch 1/1, step 2: reading. The newest complete checkpoint "
        "is step-00000007. Give it more time, and run the same command with --resume auto.\n"
    )
