"""Commands in processes that are forked from one that has imported what they import.

Imports are most of what a small command costs: ten seconds of a core for each rank. What is forked is otherwise what a
shell would have started: it has its command line, environment, session and output, runs the script as ``__main__``, and
dies of signals. The launchers among them are DeepSpeed's own; only how they start one another and a rank is replaced.
"""

import ctypes
import io
import multiprocessing
import os
import platform
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import popen_forkserver, resource_tracker
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ForkServer
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import fsspec.config
import huggingface_hub.constants

SHARED = "CCTS_TESTS_FORK_SERVER"
"""In the environment of pytest's workers: the address of the server that all of them fork from."""


class _Server(ForkServer):
    """The process that commands are forked from: this one's own, or the one whose address it was given."""

    def ensure_running(self) -> None:
        address = os.environ.get(SHARED)
        if address is None:
            super().ensure_running()
        elif self._forkserver_address is None:  # type: ignore[has-type]
            resource_tracker.ensure_running()
            self._forkserver_address = address
            # In place of the pipe whose end tells the server to go: whoever started it holds that.
            self._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)

    def share(self) -> None:
        """Start it for processes that this one is about to start; its output goes nowhere."""
        kept = [os.dup(number) for number in (1, 2)]
        silent = os.open(os.devnull, os.O_WRONLY)
        try:
            for number in (1, 2):
                os.dup2(silent, number)
            self.ensure_running()
        finally:
            for number, file in zip((1, 2), kept, strict=True):
                os.dup2(file, number)
                os.close(file)
            os.close(silent)
        os.environ[SHARED] = str(self._forkserver_address)


_SERVER = _Server()
# The second is no module, and passed over: it makes the fork server's command line long enough for those of commands.
_SERVER.set_forkserver_preload(["tests.helpers.processes.preloaded", "-" * 8_000])


_ONE_AT_A_TIME = threading.Lock()


def share_server() -> None:
    """Have processes that this one starts from now on fork from one server: its imports cost ten seconds of a core."""
    _SERVER.share()


def server_address() -> str:
    """Address of the server that this process forks from, for the environment of one that is to do so too."""
    _SERVER.ensure_running()
    return str(_SERVER._forkserver_address)


class ForkedProcess(ForkServerProcess):
    """A process from the tests' own fork server; the usual one is the shard builder's, in the tests' process too."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> popen_forkserver.Popen:  # noqa: N802
        with _ONE_AT_A_TIME:
            usual = popen_forkserver.forkserver
            own = {**vars(usual), "connect_to_new_process": _SERVER.connect_to_new_process}
            popen_forkserver.forkserver = SimpleNamespace(**own)  # type: ignore[assignment]
            try:
                return popen_forkserver.Popen(process_obj)
            finally:
                popen_forkserver.forkserver = usual


INNER_LAUNCHER = "deepspeed.launcher.launch"
OUTER_LAUNCHER = "deepspeed.launcher.runner"


Target = int | Path
"""Where output goes: ``subprocess.PIPE``, ``DEVNULL`` or, for stderr, ``STDOUT``; or a file, which is made anew."""


class Forked:
    """A started command, much as ``subprocess.Popen`` would have it: the leader of a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Target = subprocess.PIPE,
        stderr: Target = subprocess.STDOUT,
        inside: int | None = None,
    ) -> None:
        """Start ``python [-u] SCRIPT ...``, ``python [-u] -m MODULE ...``, ``python -c CODE ...`` or ``deepspeed``.

        Args:
            inside: a process whose namespaces are entered first; the command's own process is then a child of this one.
        """
        self.args = list(command)
        pipes = [Pipe(duplex=False) if target == subprocess.PIPE else None for target in (stdout, stderr)]
        targets = [
            pipe[1] if pipe is not None else target for pipe, target in zip(pipes, (stdout, stderr), strict=True)
        ]
        for target in targets:
            if isinstance(target, Path):
                target.touch()  # it can be read from now on
        self._process = ForkedProcess(
            target=_begin, args=(self.args, str(cwd), dict(env), inside, *targets), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        with suppress(ProcessLookupError):
            while os.getsid(self.pid) != self.pid:  # before that there is no group to send a signal to
                time.sleep(0.001)
        files = []
        for pipe in pipes:
            if pipe is None:
                files.append(None)
                continue
            pipe[1].close()
            files.append(io.TextIOWrapper(io.FileIO(os.dup(pipe[0].fileno())), errors="replace"))
            pipe[0].close()
        self.stdout, self.stderr = files

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._close()

    def _close(self) -> None:
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number for a command that died of one; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises ``subprocess.TimeoutExpired``."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left to read of both outputs, once nobody writes to them any more; "" for one that is no pipe."""
        with ThreadPoolExecutor(2) as pool:
            reads = [pool.submit(file.read) if file is not None else None for file in (self.stdout, self.stderr)]
            try:
                texts = ["" if read is None else read.result(timeout) for read in reads]
            except TimeoutError:
                os.killpg(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
        self.wait(timeout)
        self._close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """To a command that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _begin(
    command: list[str], cwd: str, env: dict[str, str], inside: int | None, *targets: Target | Connection
) -> None:
    assert "tests.helpers.processes.preloaded" in sys.modules, (
        "python -c 'import tests.helpers.processes.preloaded' gives the reason it is not there"
    )
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have children
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, target in enumerate(targets, 1):
        if target == subprocess.STDOUT:
            os.dup2(1, number)
        elif isinstance(target, Connection):
            os.dup2(target.fileno(), number)
        else:
            path = target if isinstance(target, Path) else os.devnull
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666), number)
    for target in targets:
        if isinstance(target, Connection):
            target.close()
    if inside is not None:
        _enter(inside)
    os.chdir(cwd)
    _run(command, env)


def _enter(pid: int) -> None:
    """Go on in the namespaces of a process, as a child of this one, which waits out here and ends as that does."""
    libc = ctypes.CDLL(None, use_errno=True)
    files = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("net", "uts", "ipc", "pid", "mnt")]
    for file in files:
        assert libc.setns(file, 0) == 0, os.strerror(ctypes.get_errno())
        os.close(file)
    platform._uname_cache = None  # type: ignore[attr-defined]  # the name of the host outside
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def _run(command: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Become that command, in this process."""
    code: object = 1
    try:
        os.environ.clear()
        os.environ.update(env)
        fsspec.config.set_conf_env(fsspec.config.conf)  # which it reads when it is imported, and so does the next
        huggingface_hub.constants.HF_HUB_CACHE = env.get("HF_HUB_CACHE", huggingface_hub.constants.HF_HUB_CACHE)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "wb", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "wb", closefd=False), write_through=True, errors="backslashreplace")
        if Path(command[0]).name == "deepspeed":
            command = [sys.executable, "-m", OUTER_LAUNCHER, *command[1:]]
        _show(command)
        words = [word for word in command[1:] if word != "-u"]
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path[0:0] = [""]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            if words[1] in (INNER_LAUNCHER, OUTER_LAUNCHER):
                _fork_children()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            sys.path[0:0] = [str(Path(words[0]).resolve().parent)]
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as raised:
        code = raised.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except KeyboardInterrupt:
        _die_of(signal.SIGINT)
    except BaseException:  # noqa: BLE001  # as the interpreter does at a script's end
        traceback.print_exc()
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons, as Python's end does
    _end(0 if code is None else code if isinstance(code, int) else 1)


def _end(code: int) -> NoReturn:
    from ccts_dist.errors import exit_without_teardown

    exit_without_teardown(code)


def _die_of(number: int) -> None:
    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Child:
    """A child of this process: what a launcher takes for the ``Popen`` of a rank, or of the launcher below."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], *, prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Fork the command; ``prepare`` is called in the new process first."""
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            sys.modules["subprocess"] = subprocess
            prepare()
            _run(command, env)

    def send_signal(self, number: int) -> None:
        """To a command that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _fork_children() -> None:
    """Have a launcher of DeepSpeed, which is about to run as ``__main__``, fork what it starts."""
    real = subprocess.Popen

    def start(command: Any, *args: Any, **named: Any) -> Any:
        if command[0] == sys.executable and set(named) == {"env"}:
            return Child(command, named["env"])
        return real(command, *args, **named)

    sys.modules["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": start})  # type: ignore[assignment]


def _show(command: Sequence[str]) -> None:
    """Give this process the command line that /proc shows: the launcher's watchers read it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    words = b"\0".join(word.encode() for word in command)[: end - begin - 1]
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, words, len(words))
