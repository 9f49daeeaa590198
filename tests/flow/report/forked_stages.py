"""A pipeline's commands, forked from a process that has their imports: a pipeline starts a dozen or two.

``python -m tests.flow.report.forked_stages ...`` is ``launch/reproduce.py ...`` with commands of that kind.
"""

import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccts_dist.report import stages
from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, environment, inner_launcher


def fork_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``run_stages`` fork what is Python or DeepSpeed's launcher, with the launcher's inner half."""
    known = {**vars(subprocess), "Popen": _start}
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(**known))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def _start(command: Sequence[str], *, env: Mapping[str, str], **as_usual: Any) -> Forked | subprocess.Popen[str]:
    if command[0] == "deepspeed":
        known = dict(zip(command[1:5:2], command[2:5:2], strict=True))
        assert set(known) == {"--num_gpus", "--master_port"}, command
        return Forked([*inner_launcher(int(known["--num_gpus"])), *command[5:]], cwd=ROOT, env=env)
    if command[0] == sys.executable:
        return Forked(command, cwd=Path.cwd(), env=env)
    return subprocess.Popen(command, env=env, **as_usual)


if __name__ == "__main__":
    fork_stages(pytest.MonkeyPatch())
    runpy.run_path(str(ROOT / "launch" / "reproduce.py"), run_name="__main__")
