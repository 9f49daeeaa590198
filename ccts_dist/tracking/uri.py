"""Address of runs and models: one rule for training, registering and pulling."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from ccts_dist.errors import ConfigError
from ccts_dist.redaction import redact, remember, remember_mistyped, userinfo_of, without_credentials

_SQLITE = "sqlite:///"

DEMO_STORE = Path("demo/mlflow.db")
"""Store in which ``make demo`` keeps its runs and models, from the checkout's folder."""


def resolve_tracking_uri(uri: str) -> str:
    """The address to use when the user gave ``uri``.

    "" means ``MLFLOW_TRACKING_URI`` if it is set, else the SQLite file ``mlflow.db`` in the working directory.

    SQLite paths are made absolute: a relative one would move with the working directory.

    Raises:
        ConfigError: a plain folder or ``file:`` address, since MLflow's file store knows no aliases; or a user or
            password that MLflow would read otherwise.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or sqlite_uri(Path("mlflow.db"))
    remember(uri)
    remember_mistyped(uri)
    scheme = uri.partition(":")[0] if re.match(r"[a-z][a-z0-9+.-]*:", uri) else "file"
    if scheme == "file":
        raise ConfigError(
            f"tracking uri {redact(without_credentials(uri))!r} is a folder: MLflow's file store keeps no model "
            f"aliases. Use {_SQLITE}PATH.db, or the address of a server (http://HOST:PORT)."
        )
    if scheme in ("http", "https") and "://" not in uri:
        raise ConfigError(f"tracking uri {redact(uri)!r} lacks the slashes of an address. Write {scheme}://HOST:PORT.")
    _check_credentials(uri)
    file = sqlite_file(uri)
    if file is None:
        return uri
    _, mark, options = uri.partition("?")
    return f"{sqlite_uri(file.absolute())}{mark}{options}"


def _check_credentials(uri: str) -> None:
    """Refuse a password of which libraries would take a part for the host, and look that up in the network."""
    over_http = uri.startswith("http")
    found = re.search(r"[/?#\s\\]" if over_http else "@", userinfo_of(uri))
    if found is not None:
        instead = (
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if over_http else "the database's own settings"
        )
        raise ConfigError(
            f"tracking uri {without_credentials(uri)!r}: its user or password holds {found[0]!r}, which ends it there. "
            f"Write %{ord(found[0]):02X} in its place (and %40 for an @ elsewhere), or leave both to {instead}."
        )


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address; None for any other store."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])) if uri.startswith(_SQLITE) else None


def sqlite_uri(file: Path) -> str:
    """The address of an SQLite file; what would end or change its name there is escaped, as SQLAlchemy reads it."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def name_another_store(uri: str) -> str:
    """The remedy where something is not in the store at ``uri``: the option, and the demo's address if it is there."""
    words = "name another store with --tracking-uri or MLFLOW_TRACKING_URI"
    demo = DEMO_STORE.absolute()
    is_another = demo.is_file() and sqlite_file(uri) != demo
    return f"{words}; the demo's is --tracking-uri {sqlite_uri(demo)}" if is_another else words


def artifact_location(uri: str, experiment: str) -> str | None:
    """Folder in which a new experiment keeps its files: ``mlruns`` beside an SQLite file; None leaves it to the
    server."""
    file = sqlite_file(uri)
    if file is None:
        return None
    return (artifact_root(file) / re.sub(r"[^\w.-]+", "_", experiment)).as_uri()


def artifact_root(file: Path) -> Path:
    """The folder of an SQLite store's files, next to it."""
    return file.absolute().parent / "mlruns"
