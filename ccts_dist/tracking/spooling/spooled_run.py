"""``<run folder>/tracking/0001/``: a run and what it has reported, from its first moment on, whether or not a server
knows.

A start that goes on with a run takes the newest; any other start makes another.
"""

import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.files.atomic import atomic_write
from ccts_dist.redaction import without_credentials

log = logging.getLogger(__name__)

FOLDER = "tracking"
QUEUES = ("events", "files")
"""Names of a run's spools: an upload that fails keeps no figure waiting."""

_NAME = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledRun:
    """A run as its folder knows it."""

    folder: Path
    token: str
    """Finds the run at a server that has made it and whose answer was lost."""

    run_name: str
    experiment: str
    parent: str
    """Name of the run that it belongs to, "" for none."""

    tracking_uri: str
    """Without user and password."""

    began_ms: int
    run_id: str = ""
    """"" until a server knows the run."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run as it is made: program, commit and user."""

    is_new: bool = False
    """Made by this process, so that no server can know it yet."""

    def write(self) -> None:
        """Remember it; a disk that fails is no reason to stop, though another start may then begin a run of its own."""
        stored = asdict(self)
        del stored["folder"], stored["is_new"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / _NAME, (json.dumps(stored, indent=2) + "\n").encode())
        except OSError as error:
            log.warning("tracking: %s cannot be written: %s", self.folder / _NAME, error)

    def known_as(self, run_id: str, tracking_uri: str) -> "SpooledRun":
        """The same run, written down with its id at a server."""
        known = replace(self, run_id=run_id, tracking_uri=without_credentials(tracking_uri), is_new=False)
        if known != replace(self, is_new=False):
            known.write()
        return known


def begin_run(
    output: Path,
    *,
    run_name: str,
    experiment: str,
    parent: str,
    tracking_uri: str,
    tags: Mapping[str, str] | None = None,
) -> SpooledRun:
    """A new run in a run folder, written down."""
    numbers = [int(path.name) for path in _folders(output)]
    run = SpooledRun(
        folder=output / FOLDER / f"{max(numbers, default=0) + 1:04d}",
        token=uuid.uuid4().hex,
        run_name=run_name,
        experiment=experiment,
        parent=parent,
        tracking_uri=without_credentials(tracking_uri),
        began_ms=time.time_ns() // 1_000_000,
        tags=tags or {},
        is_new=True,
    )
    run.write()
    return run


def spooled_runs(output: Path) -> list[SpooledRun]:
    """The runs of a run folder, oldest first; one that a kill has left half made reported nothing and is omitted.

    Raises:
        ConfigError: a file is not what tracking writes there.
    """
    return [_read(folder) for folder in _folders(output) if (folder / _NAME).is_file()]


def is_newest(run: SpooledRun, output: Path) -> bool:
    """True if a run is the one that its folder would go on with."""
    return run.folder.name == max((folder.name for folder in _folders(output)), default=run.folder.name)


def _folders(output: Path) -> list[Path]:
    return sorted(path for path in (output / FOLDER).glob("[0-9]*") if path.name.isdecimal())


def _read(folder: Path) -> SpooledRun:
    path = folder / _NAME
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return SpooledRun(
            folder=folder,
            token=str(stored["token"]),
            run_name=str(stored["run_name"]),
            experiment=str(stored["experiment"]),
            parent=str(stored["parent"]),
            tracking_uri=str(stored["tracking_uri"]),
            began_ms=int(stored["began_ms"]),
            run_id=str(stored["run_id"]),
            tags={str(key): str(value) for key, value in dict(stored.get("tags", {})).items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what tracking writes there ({error!r}). Move the folder {folder} away to begin a new run."
        ) from error
