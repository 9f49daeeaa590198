"""A quiet, impatient MLflow client: no telemetry, no chatter, no retries of its own, no global state.

MLflow reads these settings from the environment, some of them when it is first imported, so nothing here imports it
before they are set. A setting that the user has made stays.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ccts_dist.errors import ConfigError
from ccts_dist.process.account import complete_account
from ccts_dist.redaction import redact, remember, shown_cause, without_credentials
from ccts_dist.tracking.sqlite_store import make_store
from ccts_dist.tracking.uri import sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # with the default a call to a dead server returns after four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

_PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "900"}
"""For models of gigabytes: a server's proxy answers an upload only when its own store has taken it."""


def prepare_mlflow() -> None:
    """Set what MLflow reads when it is imported. Call it before anything imports mlflow."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    complete_account()


def open_client(uri: str) -> "MlflowClient":
    """A client of tracking server and registry at one address.

    An SQLite file that is not there is made.

    Raises:
        ConfigError: an address MLflow does not know, or one whose database driver is not installed.
        OSError: an SQLite file that cannot be made.
    """
    prepare_mlflow()
    from mlflow import MlflowClient
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
    from sqlalchemy.exc import ArgumentError

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    remember(uri)
    file = sqlite_file(uri)
    if file is not None:
        _keep_to_the_address()
        make_store(file)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except UnsupportedModelRegistryStoreURIException as error:
        raise ConfigError(
            f"tracking uri {without_credentials(uri)!r} is of no kind that MLflow knows. "
            "Use sqlite:///PATH.db or the address of a server (http://HOST:PORT)."
        ) from shown_cause(error)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracking uri {without_credentials(uri)!r} needs the Python package {error.name!r}, which is not "
            "installed. Install it, or use a server's http address."
        ) from shown_cause(error)
    except (TypeError, ValueError, ArgumentError) as error:  # a port that is no number, an unknown option
        raise ConfigError(
            f"tracking uri {without_credentials(uri)!r} cannot be read ({' '.join(redact(str(error)).split())[:200]}). "
            "Mend the address."
        ) from shown_cause(error)


def _keep_to_the_address() -> None:
    """Have MLflow make no folders of SQLite addresses: it takes "%3F" for a part of a folder's name, and makes that."""
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = lambda db_uri: None


@contextmanager
def large_transfers() -> Iterator[None]:
    """Within the block, HTTP calls may take as long as a large model needs."""
    before = {name: os.environ.get(name) for name in _PATIENT}
    for name, value in _PATIENT.items():
        if before[name] in (None, _SETTINGS[name]):
            os.environ[name] = value
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
