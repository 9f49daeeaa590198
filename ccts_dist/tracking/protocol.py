"""The protocol of tracking: events of a training run, whoever listens."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from ccts_dist.records import Condition

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended; "KILLED" is a run that stopped on request and may go on."""


@runtime_checkable
class Tracking(Protocol):
    """Receiver of rank 0's reports of a run. No call waits for a server, and none raises because a server or a disk
    fails.

    What a call was given is on disk when it returns, so that no SIGKILL loses it.

    Metrics are kept once per (key, step): the steps of one key must rise, and an event at or below the last step of
    its key is dropped. So a resumed run may simply report again what it repeats.
    """

    @property
    def run_id(self) -> str:
        """The run's name at the server; "" where there is none (yet)."""
        ...

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings of the run; tables within tables become dotted keys."""
        ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Measured values at one optimizer step, counted from the start of training."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts about the run that may change later."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run, under ``folder``. It is read later: leave it in place until ``close``."""
        ...

    def text(self, text: str, name: str) -> None:
        """A small file by its content; ``name`` may be within folders."""
        ...

    def description(self, text: str) -> None:
        """The run in a few words for people, in Markdown; takes the place of an earlier description."""
        ...

    def inputs(
        self,
        *,
        shard_set_digest: str,
        splits: Mapping[str, int],
        cache_digest: str = "",
        condition: Condition | None = None,
        corpus: str = "",
        shards: str = "",
        cache: str = "",
    ) -> None:
        """Inputs of the run: the shard set, its splits with their utterances, teacher cache and condition.

        Args:
            corpus: name and release.
            shards: folder or address of the shard set.
            cache: of the teacher cache.
        """
        ...

    def flush(self) -> None:
        """Send what is buffered; returns after a moment even if the server is slow or away."""
        ...

    def close(self, status: Status) -> None:
        """Send the rest and end the run. Waits for an absent server, but not for long; calling it again is harmless."""
        ...


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of tables within tables, each with its value as text: JSON, unless it is text already."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
