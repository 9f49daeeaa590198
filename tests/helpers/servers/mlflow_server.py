"""Real servers of MLflow on this machine, for the length of a test: the registry's, and a model's."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.processes.forked import Forked
from tests.helpers.processes.launching import ROOT, free_port, hear_interrupts


@contextmanager
def mlflow_server(
    folder: Path,
    *,
    port: int,
    store: str = "",
    files: str = "",
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The address of a server; it is killed, with its workers, at the end.

    Args:
        folder: of its log, and of what the next two leave to it.
        port: is free.
        store: address of the database; "" for an SQLite file in ``folder``.
        files: where the server keeps artifacts, which pass through it; "" for a folder in ``folder``.
        options: more, for the command.
        environment: more, for the server.
    """
    words = [
        *("server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store or f"sqlite:///{folder / 'server.db'}"),
        *("--artifacts-destination", files or str(folder / "files")),
        *options,
    ]
    # Its job helpers would be nine processes of 240 MB.
    more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **(environment or {})}
    log = folder / "server.log"
    command = [sys.executable, "-m", "tests.helpers.servers.forked_mlflow", *words]
    server = Forked(command, cwd=Path.cwd(), env=os.environ | more, stdout=log)
    try:
        wait_until_healthy(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def start_model_server(
    model: str, log: Path, *, port: int, uri: str, environment: Mapping[str, str], by: str = "mlflow"
) -> subprocess.Popen[bytes]:
    """``mlflow models serve``, begun, or ``launch/serve.py``; whoever starts it ends its process group."""
    program = {
        "mlflow": ["-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"],
        "launch/serve.py": ["launch/serve.py", model],
    }[by]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *program, "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env=os.environ
            | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow looks for uvicorn there
                "MLFLOW_TRACKING_URI": uri,
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "OMP_NUM_THREADS": "1",
            }
            | environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServer:
    """One that answers."""

    address: str
    process: subprocess.Popen[bytes]
    """Killed, with its workers, at the end."""


@contextmanager
def model_server(
    model: str, log: Path, *, uri: str, environment: Mapping[str, str], by: str = "mlflow"
) -> Iterator[ModelServer]:
    """A server of a model, without unpickling; it must be there still at the end."""
    port = free_port()
    server = start_model_server(model, log, port=port, uri=uri, environment=environment, by=by)
    try:
        wait_until_healthy(server, port, log)
        yield ModelServer(address=f"http://127.0.0.1:{port}", process=server)
        assert server.poll() is None, log.read_text(errors="replace")
    finally:
        if server.poll() is None:
            os.killpg(server.pid, 9)
        server.wait()


def wait_until_healthy(server: subprocess.Popen[bytes] | Forked, port: int, log: Path) -> None:
    """Until something answers at the port; fails with the log when the process ends before."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"no server after 180 s:\n{log.read_text()}")
