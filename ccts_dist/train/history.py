"""The figures of every optimizer step, one JSON object a line, of the run as it counts: replayed steps stand once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccts_dist.errors import OutputError
from ccts_dist.train.storage import writing


class History:
    """The history of a run, open for more.

    Writing never raises: one rank writes, and what it raised alone would leave its peers waiting. ``check`` does, where
    all ranks meet.

    Args:
        path: the file; may be there from an earlier start.
        steps_done: it is cut back to these.

    Raises:
        OutputError: it cannot be read or written.
    """

    def __init__(self, path: Path, steps_done: int) -> None:
        self._path = path
        self._trouble: OutputError | None = None
        with writing(path):
            kept = _lines_up_to(path, steps_done)
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: Mapping[str, Any]) -> None:
        """One more step."""
        try:
            with writing(self._path):
                self._file.write(json.dumps(step) + "\n")
        except OutputError as error:
            self._trouble = self._trouble or error

    def close(self) -> None:
        """No more steps for now."""
        try:
            with writing(self._path):
                self._file.close()
        except OutputError as error:
            self._trouble = self._trouble or error

    def check(self) -> None:
        """Raises: OutputError, when a step could not be written."""
        if self._trouble is not None:
            raise self._trouble


def _lines_up_to(path: Path, steps_done: int) -> list[str]:
    kept: list[str] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= steps_done:
                    kept.append(line + "\n")
            except ValueError:
                break  # the line that was being written when the run was killed
    return kept
