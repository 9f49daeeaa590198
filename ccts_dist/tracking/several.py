"""A run reported to several trackers at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ccts_dist.tracking.protocol import Status, Tracking


@final
class SeveralTrackings:
    """Passes every call on to each tracker, in order. None of them waits or raises, so one does not delay another."""

    def __init__(self, *trackings: Tracking) -> None:
        self._trackings = trackings

    @property
    def run_id(self) -> str:
        """Run ID of the first that has a server."""
        return next((one.run_id for one in self._trackings if one.run_id), "")

    def params(self, values: Mapping[str, Any]) -> None:
        """To each."""
        for one in self._trackings:
            one.params(values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """To each."""
        for one in self._trackings:
            one.metrics(values, step)

    def tags(self, values: Mapping[str, str]) -> None:
        """To each."""
        for one in self._trackings:
            one.tags(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        """To each."""
        for one in self._trackings:
            one.artifact(path, folder)

    def text(self, text: str, name: str) -> None:
        """To each."""
        for one in self._trackings:
            one.text(text, name)

    def description(self, text: str) -> None:
        """To each."""
        for one in self._trackings:
            one.description(text)

    def inputs(self, **facts: Any) -> None:
        """To each; arguments as in ``Tracking``."""
        for one in self._trackings:
            one.inputs(**facts)

    def flush(self) -> None:
        """Each in turn."""
        for one in self._trackings:
            one.flush()

    def close(self, status: Status) -> None:
        """Each in turn, those without a server first: MLflow's may wait for its own."""
        for one in sorted(self._trackings, key=lambda one: bool(one.run_id)):
            one.close(status)
