"""Shared ground of registering and pulling: names of models, one way to ask the server, one kind of error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.redaction import redact, shown_cause, without_credentials

SCHEME = "models:/"
RUN_SCHEME = "runs:/"
DIGEST_TAG = "sha256."
"""Tags of a model version: ``sha256.<path in the package>`` -> the file's SHA-256."""

_ALIAS_TRIES = 10

PACKAGE = "package"
"""Folder of the package inside the MLflow model's ``artifacts``."""


if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, slots=True)
class ModelUri:
    """A model as a command line names it."""

    name: str
    alias: str = ""
    version: str = ""
    """One of alias and version is given."""

    run: str = ""
    """Id of a run, in place of all of the above: the model that was registered of it last."""


def parse_model_uri(model: str) -> ModelUri | None:
    """The model in ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/RUN_ID``; None for no such address.

    Raises:
        ConfigError: it begins like one of them and is none.
    """
    if model.startswith(RUN_SCHEME):
        run = model.removeprefix(RUN_SCHEME)
        if re.fullmatch(r"[\w-]+", run, re.ASCII) is None:
            raise ConfigError(f"model {model!r} must be {RUN_SCHEME}RUN_ID, the id alone. Copy it from the run's page.")
        return ModelUri("", run=run)
    if not model.startswith(SCHEME):
        return None
    match = re.fullmatch(r"([^/@:]+)(?:@([^/@:]+)|/([1-9]\d*))", model.removeprefix(SCHEME))
    if match is None:
        raise ConfigError(f"model {model!r} must be {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION. Give one of the two.")
    return ModelUri(match[1], match[2] or "", match[3] or "")


def check_name(name: str, what: str) -> None:
    """Refuse a name or alias that could not be written in an address.

    Raises:
        ConfigError: it is empty or has one of ``/ @ :``.
    """
    if not name.strip() or re.search(r"[/@:]", name):
        raise ConfigError(f"{what} {name!r}: must not be empty and must not hold '/', '@' or ':'. Choose another.")


def check_alias(alias: str) -> None:
    """Refuse an alias that MLflow would refuse once the version is made.

    Raises:
        ConfigError: it cannot be an alias, or MLflow has it for itself: "latest", and "v" with a number.
    """
    check_name(alias, "alias")
    if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise ConfigError(f"alias {alias!r}: MLflow keeps it for itself, as 'latest' and v1, v2, ... Choose another.")
    if re.fullmatch(r"[\w-]{1,255}", alias) is None:
        raise ConfigError(f"alias {alias!r}: must be up to 255 letters, digits, '_' and '-'. Choose another.")


def move_alias(client: "MlflowClient", name: str, alias: str, version: str | int) -> None:
    """Point an alias at a version; again where other processes made the same alias in the same moment."""
    from mlflow.exceptions import MlflowException

    for tries_left in reversed(range(_ALIAS_TRIES)):
        try:
            client.set_registered_model_alias(name, alias, str(version))
        except MlflowException as error:
            if "IntegrityError" not in str(error) or not tries_left:
                raise
        else:
            return


@contextmanager
def asking_the_server(uri: str, doing: str) -> Iterator[None]:
    """Turn what MLflow, SQLAlchemy and the network raise into one line that names what was being done, and where.

    Raises:
        RegistryError: anything but success.
    """
    import requests
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        MlflowException,
        SQLAlchemyError,
        requests.RequestException,
        OSError,
        ImportError,
        ValueError,
        ParseError,
    ) as error:
        reason = " ".join(redact(str(error)).split())[:500]
        words = f"{doing} at {without_credentials(uri)} failed: {reason}"
        raise RegistryError(words) from shown_cause(error)
