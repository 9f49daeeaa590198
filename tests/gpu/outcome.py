"""A part's record: items that pass, fail or do not apply, with figures, on disk after each item.

Uses the standard library alone, for it also serves before anything is installed.
"""

import json
import math
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class NotApplicable(Exception):  # noqa: N818 - no error
    """An item that this machine cannot have, and why."""


class Outcome:
    """The items of one part so far, and the figures for its line in the table."""

    def __init__(self, path: Path, part: str) -> None:
        self._path, self._part, self._began = path, part, time.monotonic()
        self._items: list[dict[str, Any]] = []
        self._shown: dict[str, str] = {}
        self.write()

    @contextmanager
    def item(self, name: str) -> Iterator[dict[str, Any]]:
        """One item; the block fills in its figures. What it raises fails the item, and the part goes on."""
        figures: dict[str, Any] = {}
        began = time.monotonic()
        status, reason = PASSED, ""
        try:
            yield figures
        except NotApplicable as why:
            status, reason = SKIPPED, str(why)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item, the next one is of use
            traceback.print_exc()
            status, reason = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
        seconds = round(time.monotonic() - began, 3)
        print(f"{self._part}: {name}: {status} {reason} {figures}", flush=True)
        one = {"name": name, "status": status, "reason": reason, "seconds": seconds, "figures": figures}
        self._items.append(one)
        self.write()

    def show(self, name: str, value: object) -> None:
        """A figure for the part's line in the table."""
        self._shown[name] = f"{value:.3g}" if isinstance(value, float) else str(value)
        self.write()

    @property
    def failed(self) -> list[str]:
        """Names of the items that failed so far."""
        return [item["name"] for item in self._items if item["status"] == FAILED]

    def write(self, *, finished: bool = False) -> None:
        """Put it on disk, whole: the part may be ended at any moment."""
        reported = {
            "part": self._part,
            "finished": finished,
            "seconds": round(time.monotonic() - self._began, 1),
            "items": self._items,
            "shown": self._shown,
        }
        unfinished = self._path.with_suffix(".partial")
        unfinished.write_text(json.dumps(_plain(reported), indent=1))
        os.replace(unfinished, self._path)


def check(holds: bool, words: str) -> None:
    """Raise ``AssertionError`` with these words unless it holds; also under ``python -O``."""
    if not holds:
        raise AssertionError(words)


def _plain(value: Any) -> Any:
    """The same without numbers that JSON has no way to write."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
