"""Tracking for runs that nobody follows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ccts_dist.records import Condition
from ccts_dist.tracking.protocol import Status


@final
class NoTracking:
    """Listens to nothing. Also what every rank but the first holds."""

    @property
    def run_id(self) -> str:
        """No run."""
        return ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Does nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Does nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Does nothing."""

    def text(self, text: str, name: str) -> None:
        """Does nothing."""

    def description(self, text: str) -> None:
        """Does nothing."""

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
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self, status: Status) -> None:
        """Does nothing."""
