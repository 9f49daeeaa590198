"""The figures of every optimizer step, one JSON object a line, of the run as it counts: replayed steps stand once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccts_dist.errors import OutputError
from ccts_dist.files.strict_json import json_text
from ccts_dist.progress import log
from ccts_dist.train.resilience.storage_errors import writing


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
            lines = _lines_up_to(path, steps_done)
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(b"".join(lines))
            temporary.replace(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: Mapping[str, Any]) -> None:
        """One more step."""
        try:
            with writing(self._path):
                self._file.write(json_text(step) + "\n")
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


def _lines_up_to(path: Path, steps_done: int) -> list[bytes]:
    """The lines of the steps up to ``steps_done``, each with its end; damaged lines are dropped, and counted aloud.

    The last line may be half-written: the run was killed meanwhile.
    """
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    steps = [_step_of(line) for line in lines]
    if num_damaged := steps.count(None):
        log(
            f"{path}: {num_damaged} of its {len(lines)} lines are not steps as training writes them (damaged or "
            "edited) and are dropped; weights and optimizer state come from the checkpoint and are not affected"
        )
    step = _step_of(last)
    lines_and_steps = [
        (line, step) for line, step in zip((*lines, last), (*steps, step), strict=True) if step is not None
    ]
    return [line + b"\n" for line, step in lines_and_steps if step <= steps_done]


def _step_of(line: bytes) -> int | None:
    """The number of the step in a line; None where the line is none that training has written whole."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None
