"""Parts as processes of their own, each with its time limit: one that fails, hangs or is killed ends no other.

Uses the standard library alone.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.outcome import FAILED, PASSED, SKIPPED

ROOT = Path(__file__).resolve().parent.parent.parent
LOG_TAIL = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of first light."""

    letter: str
    title: str
    module: str
    limit_s: float
    """On a GPU machine."""


def run_part(
    part: Part, limit_s: float, command: list[str], out: Path, place: Path, env: Mapping[str, str]
) -> dict[str, Any]:
    """Run one part to its end, or to its limit; its record, which lies in ``out`` too.

    Args:
        command: of the part, but for the file that it records in and the folder that it works in.
        place: for its log and that folder.
    """
    record, log, work = out / f"{part.letter}.json", place / f"{part.letter}.log", place / f"{part.letter}.work"
    record.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(log, "wb") as words:
        process = subprocess.Popen(
            [*command, "--json", str(record), "--work", str(work)],
            cwd=ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit_s)
            ending = "" if code == 0 else _words_of(code)
        except subprocess.TimeoutExpired:
            ending = f"ran longer than its {limit_s:.0f} s"
        finally:
            _end_all(process)
    reported = verdict_of(part, _read(record), ending, time.monotonic() - began)
    tail = log.read_bytes()[-LOG_TAIL:].decode(errors="replace")
    if reported["status"] == FAILED:
        reported["log_tail"] = tail
    record.write_text(json.dumps(reported, indent=1))
    shutil.rmtree(work, ignore_errors=True)
    return reported


def skipped(part: Part, reason: str, out: Path) -> dict[str, Any]:
    """The record of a part that was not begun."""
    reported = verdict_of(part, {}, "", 0.0) | {"status": SKIPPED, "reason": reason}
    (out / f"{part.letter}.json").write_text(json.dumps(reported, indent=1))
    return reported


def verdict_of(part: Part, reported: Mapping[str, Any], ending: str, seconds: float) -> dict[str, Any]:
    """The record with the part's status: failed if it ended badly or any item failed."""
    items = list(reported.get("items", ()))
    failed = [item for item in items if item["status"] == FAILED]
    passed = [item for item in items if item["status"] == PASSED]
    reasons = [ending] if ending else []
    if not ending and not reported.get("finished"):
        reasons.append("ended before its end, with exit code 0")
    reasons += [f"{item['name']}: {item['reason']}" for item in failed]
    return {
        "part": part.letter,
        "title": part.title,
        "status": FAILED if reasons else PASSED,
        "reason": "; ".join(reasons),
        "seconds": round(seconds, 1),
        "passed": len(passed),
        "failed": len(failed),
        "skipped": len(items) - len(passed) - len(failed),
        "shown": dict(reported.get("shown", {})),
        "items": items,
    }


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End what the part has left running, itself included: it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _words_of(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _read(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text()) if record.exists() else {}


def python(module: str, *args: str) -> list[str]:
    """A command that runs a module of this repository."""
    return [sys.executable, "-u", "-m", module, *args]
