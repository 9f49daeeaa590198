"""Commands as a user starts them: the real launcher, real processes, every exit code read."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.helpers.processes.forked import INNER_LAUNCHER, SHARED, Forked

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with the project's programs first and one thread per rank."""
    own = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(BIN.parent / "torch_extensions")),
        "HF_HUB_OFFLINE": "1",
    }
    apart = ("RANK", "WORLD_SIZE", "LOCAL_RANK", SHARED)
    kept = {name: value for name, value in os.environ.items() if name not in apart}
    return {**kept, **own, **(extra or {})}


def hear_interrupts() -> None:
    """For ``preexec_fn``: tests that run in the background, and so their children, may be deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launcher(num_ranks: int) -> list[str]:
    """The DeepSpeed launcher for so many ranks on this machine."""
    return [str(BIN / "deepspeed"), "--num_gpus", str(num_ranks), "--master_port", str(free_port())]


def inner_launcher(num_ranks: int) -> list[str]:
    """What ``launcher`` starts on each host, and what starts and watches the ranks; for
    ``tests.helpers.processes.forked``.

    Where launching is not what is tested: each launcher and each rank imports for longer than a small training takes.
    """
    hosts = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(num_ranks))}).encode()).decode()
    where = (f"--world_info={hosts}", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    return [sys.executable, "-u", "-m", INNER_LAUNCHER, *where]


def launch(
    num_ranks: int,
    script: str,
    *args: str,
    timeout_s: float = 240.0,
    env: Mapping[str, str] | None = None,
    whole_launcher: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a script under the inner launcher, or the whole one, to its end, whatever that is."""
    words = launcher(num_ranks) if whole_launcher else inner_launcher(num_ranks)
    return run_forked([*words, script, *args], timeout_s=timeout_s, env=env)


def run_forked(
    command: Sequence[str], *, timeout_s: float = 240.0, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run ``python SCRIPT ...`` or a launcher to its end, in processes that have the imports: see
    ``tests.helpers.processes.forked``."""
    process = Forked(command, cwd=cwd, env=environment(env), stderr=subprocess.PIPE)
    try:
        out, error = process.communicate(timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # of a launcher that was killed, the ranks
    return subprocess.CompletedProcess(list(command), process.wait(), out, error)


def launch_well(num_ranks: int, script: str, *args: str, timeout_s: float = 240.0) -> str:
    """Run a script under the launcher; fail with all its words unless every rank exits with 0."""
    done = launch(num_ranks, script, *args, timeout_s=timeout_s)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout + done.stderr
