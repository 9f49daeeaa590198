"""Events of a run, and how an event stands in a line of a file."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MetricEvent:
    """One value of one metric."""

    key: str
    value: float
    step: int
    timestamp_ms: int
    """When it was measured. The same on every attempt, so that a server can distinguish a repeated event from a new
    one."""


@dataclass(frozen=True, slots=True)
class ParamEvent:
    """One setting."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class TagEvent:
    """One fact that may change."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class DatasetEvent:
    """One data set that the run reads, as MLflow lists them."""

    name: str
    digest: str
    source: str
    """Folder or address, without user and password."""

    profile: str
    """JSON: what is in it."""

    context: str
    """Purpose, such as "training"."""


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A file to keep, read when it is sent."""

    path: Path
    """Relative to the run folder, if it lies in it: that may be moved."""

    folder: str


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A small file's content."""

    text: str
    name: str


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """How the run stands: RUNNING again, or how it has ended."""

    status: str
    timestamp_ms: int


Event = MetricEvent | ParamEvent | TagEvent | DatasetEvent | FileEvent | TextEvent | StatusEvent

ALONE = (FileEvent, TextEvent, StatusEvent)
"""Kinds of which one at a time is sent."""

_KINDS: dict[str, type[Event]] = {
    "metric": MetricEvent,
    "param": ParamEvent,
    "tag": TagEvent,
    "dataset": DatasetEvent,
    "file": FileEvent,
    "text": TextEvent,
    "status": StatusEvent,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_line(number: int, event: Event) -> str:
    """A JSON list: number, kind, then what the event holds; with its line end.

    A value that is not finite becomes NaN or Infinity, which only Python reads back.
    """
    return json.dumps([number, _NAMES[type(event)], *astuple(event)], default=str, ensure_ascii=False) + "\n"


def from_line(line: str) -> tuple[int, Event]:
    """The number and the event of a line that ``to_line`` has made.

    Raises:
        ValueError: it is no such line.
    """
    try:
        number, name, *values = json.loads(line)
        if _KINDS[name] is FileEvent:
            values[0] = Path(values[0])
        return int(number), _KINDS[name](*values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no event: {line[:80]!r}") from error


def in_words(event: Event) -> str:
    """For people, in a line of bounded length."""
    words = repr(event)
    return words if len(words) < 200 else words[:200] + "..."
