"""``mlflow server`` with a server that has its imports: ``python -m tests.helpers.servers.forked_mlflow server ...``.

MLflow's command starts uvicorn in a process of its own, which imports for longer than most tests ask it anything. Here
that process is forked from the command's. It runs the same: uvicorn's own command, and MLflow's modules imported anew
in the environment that they were given.
"""

import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs
from mlflow.utils import process

from tests.helpers.processes.forked import Child

_of_the_command: list[Any] = []
"""Of the process that was forked: kept, so that nothing closes what it has in common with this one."""


def _start(command: Sequence[str], *, env: Mapping[str, str], **as_usual: Any) -> Child | subprocess.Popen[str]:
    # The one that asks for passwords is not forked: the command has counters of it, which can be there once.
    if command[:3] == [sys.executable, "-m", "uvicorn"] and command[-1] == "mlflow.server.fastapi_app:app":
        return Child(command, env, prepare=_forget)
    return subprocess.Popen(command, env=env, **as_usual)


def _forget() -> None:
    """Leave to the command what it has read of its environment, and its connections."""
    modules = [name for name in sys.modules if f"{name}.".startswith("mlflow.server.")]
    _of_the_command.extend(sys.modules.pop(name) for name in modules)
    for store in (Runs, Registry):
        _of_the_command.append(dict(store._engine_map))
        store._engine_map.clear()


if __name__ == "__main__":
    process.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _start})  # type: ignore[attr-defined]
    sys.argv[0] = "mlflow"
    runpy.run_module("mlflow", run_name="__main__", alter_sys=True)
