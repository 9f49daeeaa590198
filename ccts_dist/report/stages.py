"""A pipeline of commands, run as a user would type them: what is done already is not done again."""

import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ccts_dist.errors import StageError
from ccts_dist.progress import log
from ccts_dist.shipped import find_run_file

NOISE = re.compile(
    r"\[(INFO|WARNING)\]"
    r"|built successfully|No CUDA runtime is found|^\s*$"
    r"|^(Distributed environment|Num processes|Process index|Local process index|Device|Mixed precision|ds_config):?"
)
"""Lines that DeepSpeed and Accelerate print at every start; the log has them all, a person need not."""


_COMMANDS = Path(__file__).parents[1] / "commands"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command of a pipeline."""

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...] = ()
    """Files that the command reads and a person edits: when one has changed, the stage is run again."""

    def digest(self) -> str:
        """Equal as long as command and inputs are."""
        inputs = (find_run_file(path).read_bytes() for path in self.inputs)
        parts = [shlex.join(self.command).encode(), *inputs]
        return hashlib.sha256(b"\x00".join(parts)).hexdigest()


@runtime_checkable
class Runner(Protocol):
    """Runs one stage to its end."""

    def __call__(self, stage: Stage, log_path: Path, environment: dict[str, str], *, quiet: bool) -> float:
        """The seconds that it took; raises StageError if it failed."""
        ...


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    *,
    environment: dict[str, str],
    title: str = "",
    after_each: Callable[[Stage, float], None] | None = None,
    run: Runner | None = None,
) -> dict[str, float]:
    """Run the stages that are not done, in order; the seconds that each took, when it was run.

    Each stage leaves ``<folder>/stages/<name>.json`` when it has succeeded and ``<folder>/logs/<name>.log`` in any
    case. Stages must be able to go on where they were killed: that is how they are started again.

    Args:
        environment: for the stages, beside this process's own.
        title: of a pipeline that runs beside others: stands before its headings, and what its stages state goes to
            their logs alone.
        after_each: informed of each stage that is done, and the seconds it took, whenever that was.
        run: runs a stage; None to start its command.

    Raises:
        StageError: a command failed; names its log. What is done stays done.
    """
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    seconds = {}
    for number, stage in enumerate(stages, start=1):
        stamp = folder / "stages" / f"{stage.name}.json"
        heading = f"{title} [{number}/{len(stages)}] {stage.name}".lstrip()
        log_path = folder / "logs" / f"{stage.name}.log"
        done = _read_stamp(stamp, stage)
        if done is None:
            log(f"{heading}: {log_path if title else shlex.join(stage.command)}")
            done = (run or _run)(stage, log_path, environment, quiet=bool(title))
            stamp.write_text(json.dumps({"digest": stage.digest(), "seconds": done}), encoding="utf-8")
        else:
            log(f"{heading}: done before, in {done:.0f} s")
        seconds[stage.name] = done
        if after_each is not None:
            after_each(stage, done)
    return seconds


def raise_failures(errors: Sequence[BaseException]) -> None:
    """Raise what ended pipelines that ran side by side; nothing if none failed.

    Raises:
        StageError: stages failed; each message once.
        BaseException: the first error of another kind.
    """
    for error in errors:
        if not isinstance(error, StageError):
            raise error
    if errors:
        raise StageError("; ".join(sorted({str(error) for error in errors})))


def stage_environment(tracking_uri: str) -> dict[str, str]:
    """Variables that stages get beside this process's environment: the launcher on the path, and where runs are
    tracked."""
    return {
        # So that the launcher is found without the environment being activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "MLFLOW_TRACKING_URI": tracking_uri,
    }


def launcher(num_ranks: int) -> tuple[str, ...]:
    """The DeepSpeed launcher for ranks on this machine, on a port that is free now."""
    return ("deepspeed", "--num_gpus", str(num_ranks), "--master_port", "{free port}")


def _read_stamp(stamp: Path, stage: Stage) -> float | None:
    try:
        tree = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return float(tree["seconds"]) if tree["digest"] == stage.digest() else None


def _run(stage: Stage, log_path: Path, environment: dict[str, str], *, quiet: bool) -> float:
    began = time.monotonic()
    # Replaced here and not in the stage: another port does not make it another command.
    command = [_script(part).replace("{free port}", str(_free_port())) for part in stage.command]
    with (
        log_path.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if not quiet and not NOISE.search(line):
                sys.stderr.write("    " + line)
                sys.stderr.flush()
    if process.returncode != 0:
        raise StageError(f"{stage.name}: ended with exit code {process.returncode}. Its whole output is in {log_path}.")
    return time.monotonic() - began


def _script(word: str) -> str:
    """The installed file of a command where the working directory is no checkout; other words as they are."""
    found = re.fullmatch(r"(?:launch|(shards))/([a-z_]+\.py)", word)
    return word if found is None or os.path.exists(word) else str(_COMMANDS / (found[1] or "") / found[2])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
