"""A run on a tracking server, read back."""

from dataclasses import dataclass

from ccts_dist.errors import ConfigError
from ccts_dist.redaction import redact, shown_cause, without_credentials
from ccts_dist.tracking.mlflow_client import open_client
from ccts_dist.tracking.sqlite_store import is_store
from ccts_dist.tracking.uri import resolve_tracking_uri, sqlite_file

SCHEME = "runs:/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBackRun:
    """A run at a server: its settings as text, and every metric by name and step."""

    params: dict[str, str]
    metrics: dict[str, dict[int, float]]


def fetch_run(address: str, *, tracking_uri: str = "") -> ReadBackRun:
    """The run ``runs:/ID``.

    Args:
        address: ``runs:/`` and the run's id at the server.
        tracking_uri: the server; "" for the default.

    Raises:
        ConfigError: no id, no such run or store there, or the server does not answer.
    """
    run_id = address.removeprefix(SCHEME)
    if not run_id or "/" in run_id:
        raise ConfigError(f"{address}: must be {SCHEME}ID with the id of one run. Copy it from the run's page.")
    uri = resolve_tracking_uri(tracking_uri)
    file = sqlite_file(uri)
    if file is not None and not is_store(file):  # MLflow would make an empty one
        raise ConfigError(f"{address}: there is no file {file} to read it from. Name the store with --tracking-uri.")
    client = open_client(uri)
    import requests
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        run = client.get_run(run_id)
        if run.info.run_id != run_id:
            raise ValueError("it answers, but not as an MLflow server does")
        data = run.data
        metrics = {
            name: {point.step: point.value for point in client.get_metric_history(run_id, name)}
            for name in sorted(data.metrics)
        }
    except (MlflowException, SQLAlchemyError, requests.RequestException, OSError, ValueError, ParseError) as error:
        words = " ".join(redact(str(error)).split())[:300]
        raise ConfigError(
            f"{address}: cannot be read at {without_credentials(uri)} ({words}). Give the id of a run there, or "
            "another --tracking-uri."
        ) from shown_cause(error)
    return ReadBackRun(params=dict(data.params), metrics=metrics)
