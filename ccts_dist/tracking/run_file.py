"""``tracking.json``: which run at which server a run folder belongs to."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.files.atomic import atomic_write
from ccts_dist.redaction import without_credentials
from ccts_dist.tracking.uri import resolve_tracking_uri

NAME = "tracking.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run at a server."""

    tracking_uri: str = ""
    """Address without user and password."""

    experiment: str = ""
    run_id: str = ""
    """"" where a folder was never tracked."""

    def uri(self, given: str) -> str:
        """The address to use when the user gave ``given``: without that or an environment variable, the run's own.

        A default would be today's working directory, which need not be the one the run began in.
        """
        if not given and not os.environ.get("MLFLOW_TRACKING_URI"):
            given = self.tracking_uri
        return resolve_tracking_uri(given)


def read_run_file(output: Path) -> TrackedRun:
    """The tracking facts in a run folder; empty when it was not tracked.

    Raises:
        ConfigError: the file is not what tracking writes there.
    """
    path = output / NAME
    if not path.is_file():
        return TrackedRun()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return TrackedRun(**{key: str(stored[key]) for key in ("tracking_uri", "experiment", "run_id")})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what tracking writes there ({error!r}). Remove it to begin a new run."
        ) from error


def write_run_file(output: Path, run: TrackedRun) -> None:
    """Remember a run, at one stroke."""
    output.mkdir(parents=True, exist_ok=True)
    stored = asdict(run) | {"tracking_uri": without_credentials(run.tracking_uri)}
    atomic_write(output / NAME, (json.dumps(stored, indent=2) + "\n").encode())


def forget_run_file(output: Path) -> TrackedRun:
    """Make a run folder forget an earlier run, so that nobody takes it for the new one; gives the empty one."""
    (output / NAME).unlink(missing_ok=True)
    return TrackedRun()
