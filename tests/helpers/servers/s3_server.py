"""A real S3 server (moto) on this machine, in a process of its own, that can be slow and faulty and counts requests.

Faults befall requests under a place, at a rate, drawn from a seed: answers 500 and 503, bodies that are cut, that
stall, that are altered, and answers that do not come.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec

from tests.helpers.processes.launching import ROOT

ACCESS_KEY = "AKIARECOGNISABLE0001"
SECRET_KEY = "recognisable/Secret+Key-that-must-never-be-seen"
FAULTS = ("error 500", "error 503", "cut", "altered", "stalled", "silent")

_LOG, _RULES = "requests.jsonl", "rules.jsonl"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How requests below a place are treated."""

    place: str = ""
    """``bucket/prefix``; empty for all. The rule that was made last wins."""

    fault_rate: float = 0.0
    faults: Sequence[str] = FAULTS
    methods: Sequence[str] = ("GET",)
    """Kinds of requests that faults befall."""

    seed: int = 0
    stall_s: float = 60.0
    """How long a stalled or silent answer lasts before the connection is closed."""

    bytes_per_s: float = 0.0
    """Of each connection; 0 for as fast as it goes."""


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    address: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """What a client's process needs, credentials included."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "FSSPEC_S3_ENDPOINT_URL": self.address,
            "NO_PROXY": "127.0.0.1",
        }

    def upload(self, folder: Path, place: str) -> None:
        """Put a folder's files under ``bucket/prefix``."""
        filesystem = fsspec.filesystem("s3", key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=self.address)
        filesystem.mkdirs(place.partition("/")[0], exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                filesystem.pipe_file(f"{place}/{path.name}", path.read_bytes())

    def treat(self, rule: Rule) -> None:
        """From now on, treat requests as a rule states."""
        with open(self.folder / _RULES, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(rule)) + "\n")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Meanwhile only credentials that the server has given out itself are good, which are none."""
        self._expect_credentials_after("0")
        try:
            yield
        finally:
            self._expect_credentials_after("inf")

    def _expect_credentials_after(self, num_actions: str) -> None:
        address, kind = f"{self.address}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(address, data=num_actions.encode(), headers=kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200

    def gets(self, place: str) -> Counter[str]:
        """How often each file directly under a place was asked for so far, by name."""
        found = (path.removeprefix(f"/{place}/") for path in self.paths("GET", f"{place}/"))
        return Counter(name for name in found if name and "/" not in name)

    def faults(self, place: str = "") -> list[str]:
        """The faults so far, in order."""
        return [entry["fault"] for entry in self._entries() if entry["fault"] and entry["path"].startswith(f"/{place}")]

    def paths(self, method: str, place: str = "") -> list[str]:
        """The paths of all requests of a kind below a place so far, in order."""
        entries = (entry for entry in self._entries() if entry["method"] == method)
        return [entry["path"] for entry in entries if entry["path"].startswith(f"/{place}")]

    def _entries(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.folder / _LOG).read_text(encoding="utf-8").splitlines()]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server whose logs lie in ``folder``; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_LOG, _RULES):
        (folder / name).write_text("")
    words = (folder / "server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.servers.s3_server", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=words,
        text=True,
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        assert address, (folder / "server.log").read_text()
        yield S3Server(address, folder)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        words.close()


class FaultyStore:
    """A WSGI application around another one: counts what it is asked, and answers some of it badly."""

    def __init__(self, app: Callable[..., Any], folder: Path) -> None:
        self._app, self._folder = app, folder
        self._random: dict[Rule, random.Random] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            rule = self._rule(path)
            chance, fault = self._random.setdefault(rule, random.Random(rule.seed)), ""
            if method in rule.methods and chance.random() < rule.fault_rate:
                fault = chance.choice(rule.faults)
            with open(self._folder / _LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps({"method": method, "path": path, "fault": fault}) + "\n")
        if fault.startswith("error"):
            return _error(int(fault.split()[1]), start_response)
        if fault == "silent":
            time.sleep(rule.stall_s)
            _hang_up(environ)
            return []
        return _send(b"".join(self._app(environ, start_response)), fault, rule, chance, environ)

    def _rule(self, path: str) -> Rule:
        rules = [json.loads(line) for line in (self._folder / _RULES).read_text(encoding="utf-8").splitlines()]
        for rule in reversed(rules):
            if path.startswith(f"/{rule['place']}"):
                return Rule(**(rule | {"faults": tuple(rule["faults"]), "methods": tuple(rule["methods"])}))
        return Rule()


def _send(body: bytes, fault: str, rule: Rule, chance: random.Random, environ: dict[str, Any]) -> Iterator[bytes]:
    end = len(body)
    if fault in ("cut", "stalled"):
        end = chance.randrange(len(body)) if body else 0
    if fault == "altered" and body:
        at = chance.randrange(len(body))
        body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    piece, pause_s = max(1, len(body)), 0.0
    if rule.bytes_per_s:
        piece, pause_s = 65_536, 65_536 / rule.bytes_per_s
    for start in range(0, end, piece):
        yield body[start : min(end, start + piece)]
        time.sleep(pause_s)
    if end < len(body):
        if fault == "stalled":
            time.sleep(rule.stall_s)
        _hang_up(environ)


def _error(status: int, start_response: Callable[..., Any]) -> list[bytes]:
    code = {500: "InternalError", 503: "SlowDown"}[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>A fault was asked for.</Message></Error>".encode()
    start_response(f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _hang_up(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve until killed, or until the process that started this one is gone."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    app = FaultyStore(DomainDispatcherApplication(create_backend_app), parser.parse_args().folder)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    server.serve_forever()


def _end_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
