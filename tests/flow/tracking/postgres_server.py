"""A real PostgreSQL server on this machine, for the length of a test, that can be killed and started again."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.processes.launching import free_port

_USER = "postgres"
"""The server refuses to run as root; Debian's package brings this user."""


def _programs() -> Path:
    """The folder of PostgreSQL's programs; without it the test is skipped."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which("initdb", path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return Path(found).resolve().parent


class PostgresServer:
    """A server with its data in a folder of its own; nobody is asked for a password."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._programs, self._port = folder, _programs(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:
            shutil.chown(folder, _USER, _USER)
        # Without syncing: the machine does not go down with the server.
        self._do("initdb", "--no-sync", "--auth=trust", f"--username={_USER}", "--pgdata", str(folder / "data"))

    @property
    def address(self) -> str:
        """For SQLAlchemy, of an empty database at first."""
        return f"postgresql+psycopg2://{_USER}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Until it answers."""
        settings = (f"port={self._port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        words = [word for setting in settings for word in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *words],
                cwd=self._folder, stdout=log, stderr=log, start_new_session=True, **self._as_user(),
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _is_ready(self) -> bool:
        ask = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(ask, check=False).returncode == 0

    def _do(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *args],
            cwd=self._folder, capture_output=True, text=True, check=False, **self._as_user(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> dict[str, object]:
        return {"user": _USER, "group": _USER, "extra_groups": []} if os.getuid() == 0 else {}


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs; skips the test where there is none to run."""
    # Not below pytest's folder, which is closed to other users.
    with tempfile.TemporaryDirectory(prefix="ccts-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
