"""Where runs and models are kept: one rule for training, registering and pulling."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from ccts_dist.errors import ConfigError

_SQLITE = "sqlite:///"

DEMO_STORE = Path("demo/mlflow.db")
"""Where ``make demo`` keeps its runs and models, from the checkout's folder."""


def default_tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, else the SQLite file ``mlflow.db`` in the working directory."""
    return resolve_tracking_uri("")


def resolve_tracking_uri(uri: str) -> str:
    """The address to use when the user gave ``uri``; "" means the default.

    SQLite paths are made absolute: a relative one would move with the working directory.

    Raises:
        ConfigError: a plain folder or ``file:`` address. MLflow's file store knows no aliases.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or sqlite_uri(Path("mlflow.db"))
    scheme = uri.partition(":")[0] if re.match(r"[a-z][a-z0-9+.-]*:", uri) else "file"
    if scheme == "file":
        raise ConfigError(
            f"tracking uri {uri!r} is a folder: MLflow's file store keeps no model aliases. "
            f"Use {_SQLITE}PATH.db, or the address of a server (http://HOST:PORT)."
        )
    file = sqlite_file(uri)
    if file is None:
        return uri
    _, mark, options = uri.partition("?")
    return f"{sqlite_uri(file.absolute())}{mark}{options}"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address; None for any other store."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])) if uri.startswith(_SQLITE) else None


def sqlite_uri(file: Path) -> str:
    """The address of an SQLite file; what would end or change its name there is escaped, as SQLAlchemy reads it."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def name_another_store(uri: str) -> str:
    """The remedy where something is not in the store at ``uri``: the option, and the demo's address if it is there."""
    words = "name another store with --uri or MLFLOW_TRACKING_URI"
    demo = DEMO_STORE.absolute()
    is_another = demo.is_file() and sqlite_file(uri) != demo
    return f"{words}; the demo's is --uri {sqlite_uri(demo)}" if is_another else words


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where a new experiment keeps its files: ``mlruns`` beside an SQLite file; None leaves it to the server."""
    file = sqlite_file(uri)
    if file is None:
        return None
    return (artifact_root(file) / re.sub(r"[^\w.-]+", "_", experiment)).as_uri()


def artifact_root(file: Path) -> Path:
    """The folder of an SQLite store's files, beside it."""
    return file.absolute().parent / "mlruns"
