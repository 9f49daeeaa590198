"""A run followed in MLflow.

Why no (key, step) is ever there twice, even after SIGKILL:

* the steps of a key rise, and events leave in the order in which they were made, from one thread;
* one ``log_batch`` is one transaction, and the next is not sent before the one before it has succeeded. So what the
  server holds of a key is always a beginning of what the run measured, up to some last step;
* going on, the run asks the server for the last step of every key and drops what is at or below it;
* an attempt whose answer got lost is repeated with the same time stamps, and the server keeps one of two events that
  agree in key, step, time stamp and value.

What a killed process had measured and not yet sent is lost unless the resumed run measures it again.
"""

import json
import logging
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import requests
from sqlalchemy.exc import SQLAlchemyError

from ccts_dist.config.schema import TrackingConfig
from ccts_dist.errors import ConfigError
from ccts_dist.records import Condition
from ccts_dist.tracking.mlflow_client import open_client, prepare_mlflow
from ccts_dist.tracking.outbox import (
    AwayError,
    Event,
    FileEvent,
    MetricEvent,
    Outbox,
    ParamEvent,
    RefusedError,
    StatusEvent,
    TagEvent,
    TextEvent,
)
from ccts_dist.tracking.protocol import Status
from ccts_dist.tracking.run_file import TrackedRun, read_run_file, write_run_file
from ccts_dist.tracking.uri import artifact_location, without_password

prepare_mlflow()
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402 - after the settings that it reads
from mlflow.exceptions import MlflowException, RestException  # noqa: E402

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

UNSENT_FILE = "unsent.jsonl"
"""In the run folder: events that never reached the server, one JSON object a line."""

FLUSH_S = 5.0
CLOSE_S = 20.0
_LONGEST_PARAM = 6000  # MLflow's limits, in characters and in entries of one call
_LONGEST_TAG = 5000
_MOST_PARAMS = 100
_FOR_GOOD = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


@final
class MlflowRun:
    """One run at one MLflow server; see ``Tracking`` for what its methods promise.

    Safe to use while the server is away, from the first moment on: the run is then created later.
    """

    def __init__(
        self, *, uri: str, experiment: str, run_name: str, output: Path, continued: str, close_s: float = CLOSE_S
    ) -> None:
        """Open a run.

        Args:
            uri: resolved address of the server.
            experiment: is created if it does not exist.
            run_name: for people.
            output: run folder; ``tracking.json`` is written there.
            continued: id of the run to go on with, or "".
            close_s: longest time ``close`` waits for the server, seconds.

        Raises:
            ConfigError: an address or experiment that MLflow refuses.
        """
        self._uri, self._experiment, self._run_name, self._output = uri, experiment, run_name, output
        self._continued = continued
        self._close_s = close_s
        self._closed = False
        self._run_id = ""
        self._token = uuid.uuid4().hex
        self._attempts = 0
        self._params: dict[str, str] = {}
        self._last_step: dict[str, int] = {}
        self._opened: MlflowClient | None = None
        try:
            with _translated(self._uri):
                self._connect()
        except AwayError as error:
            log.warning("tracking: the server is away; training goes on, events are kept: %s", error)
        except RefusedError as error:
            raise ConfigError(
                f"tracking: {without_password(uri)} refuses experiment {experiment!r}: {error}. "
                "Change tracking.uri or tracking.experiment in the run file."
            ) from error
        self._outbox = Outbox(self._send)

    @property
    def run_id(self) -> str:
        """The run's id at the server; "" until the server has been reached once."""
        return self._run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; one that a continued run has with another value is logged as the tag ``changed.<key>``."""
        self._outbox.put(*(ParamEvent(key, text) for key, text in _flat(values)))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Measured values; kept once per (key, step)."""
        now = time.time_ns() // 1_000_000
        self._outbox.put(*(MetricEvent(key, float(value), int(step), now) for key, value in values.items()))

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts that may change."""
        self._outbox.put(*(TagEvent(key, str(value)) for key, value in values.items()))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, read when it is sent."""
        self._outbox.put(FileEvent(Path(path), folder))

    def inputs(
        self,
        *,
        shard_set_digest: str,
        splits: Mapping[str, int],
        cache_digest: str = "",
        condition: Condition | None = None,
    ) -> None:
        """Digests as tags ``data.*``, and everything in the artifact ``inputs/data.json``."""
        data = {
            "shard_set_digest": shard_set_digest,
            "splits": dict(splits),
            "cache_digest": cache_digest,
            "condition": None if condition is None else asdict(condition),
        }
        self.tags({"data.shard_set_digest": shard_set_digest, "data.splits": json.dumps(dict(splits))})
        if cache_digest:
            self.tags({"data.cache_digest": cache_digest})
        self._outbox.put(TextEvent(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "inputs/data.json"))

    def flush(self) -> None:
        """Send what is buffered; at most a few seconds."""
        self._outbox.flush(FLUSH_S)

    def close(self, status: Status) -> None:
        """End the run. What cannot be sent within a bounded time is written to ``unsent.jsonl`` in the run folder."""
        if self._closed:
            return
        self._closed = True
        self._outbox.put(StatusEvent(status))
        unsent = self._outbox.close(self._close_s)
        if not unsent:
            return
        path = self._output / UNSENT_FILE
        lines = [json.dumps({"run_id": self._run_id, **_fields(event)}, ensure_ascii=False) + "\n" for event in unsent]
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:  # what the run itself ends with is the better news
            log.warning(
                "tracking: %d events are lost: neither the server nor %s takes them: %s", len(unsent), path, error
            )
            return
        log.warning("tracking: %d events did not reach the server; they are in %s", len(unsent), path)

    @property
    def _client(self) -> "MlflowClient":
        # Opened late: for a database it connects at once, and the database may be away.
        if self._opened is None:
            self._opened = open_client(self._uri)
        return self._opened

    def _connect(self) -> None:
        self._attempts += 1
        run = self._find_run() if self._continued else None
        if run is None:
            run = self._create_run()
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._params = dict(run.data.params)
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        tracked = TrackedRun(tracking_uri=self._uri, experiment=self._experiment, run_id=run.info.run_id)
        write_run_file(self._output, tracked)
        self._run_id = run.info.run_id

    def _find_run(self) -> Run | None:
        """The run to go on with; None, after a warning, when the server has no such run (any more)."""
        try:
            run = self._client.get_run(self._continued)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
        log.warning("tracking: %s has no run %s any more; a new one is begun", self._uri, self._continued)
        return None

    def _create_run(self) -> Run:
        experiment = self._client.get_experiment_by_name(self._experiment)
        experiment_id = self._create_experiment() if experiment is None else experiment.experiment_id
        if self._attempts > 1:  # an earlier attempt may have created the run and lost the answer
            found = self._client.search_runs([experiment_id], f"tags.`ccts_dist.token` = '{self._token}'")
            if found:
                return found[0]
        tags = {"ccts_dist.token": self._token}
        if self._continued:
            tags["ccts_dist.continues"] = self._continued
        return self._client.create_run(experiment_id, run_name=self._run_name, tags=tags)

    def _create_experiment(self) -> str:
        try:
            return self._client.create_experiment(
                self._experiment, artifact_location=artifact_location(self._uri, self._experiment)
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = self._client.get_experiment_by_name(self._experiment)  # another job was faster
        if experiment is None:
            raise AwayError(f"experiment {self._experiment!r} exists and cannot be read")
        return experiment.experiment_id

    def _send(self, events: Sequence[Event]) -> None:
        """Runs in the sending thread; ``events`` are of one kind."""
        with _translated(self._uri):
            if not self._run_id:
                self._connect()
            first = events[0]
            if isinstance(first, MetricEvent):
                self._send_metrics([event for event in events if isinstance(event, MetricEvent)])
            elif isinstance(first, ParamEvent):
                self._send_params([event for event in events if isinstance(event, ParamEvent)])
            elif isinstance(first, TagEvent):
                self._send_tags({event.key: event.value for event in events if isinstance(event, TagEvent)})
            elif isinstance(first, FileEvent):
                if not first.path.is_file():
                    raise RefusedError(f"{first.path} is not there")
                self._client.log_artifact(self._run_id, str(first.path), first.folder or None)
            elif isinstance(first, TextEvent):
                self._client.log_text(self._run_id, first.text, first.name)
            else:
                self._client.set_terminated(self._run_id, first.status)

    def _send_metrics(self, events: Sequence[MetricEvent]) -> None:
        last, new = dict(self._last_step), []
        for event in events:
            if event.step > last.get(event.key, -1):
                last[event.key] = event.step
                new.append(Metric(event.key, event.value, event.timestamp_ms, event.step))
        if new:
            self._client.log_batch(self._run_id, metrics=new)
        self._last_step = last

    def _send_params(self, events: Sequence[ParamEvent]) -> None:
        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for event in events:
            value = event.value if len(event.value) <= _LONGEST_PARAM else event.value[: _LONGEST_PARAM - 3] + "..."
            known = self._params.get(event.key, new.get(event.key))
            if known is None:
                new[event.key] = value
            elif known != value:
                changed[f"changed.{event.key}"] = value
        entries = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(entries), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=entries[start : start + _MOST_PARAMS])
        self._params.update(new)
        self._send_tags(changed)

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        entries = [
            RunTag(key, value if len(value) <= _LONGEST_TAG else value[: _LONGEST_TAG - 3] + "...")
            for key, value in tags.items()
        ]
        for start in range(0, len(entries), _MOST_PARAMS):
            self._client.log_batch(self._run_id, tags=entries[start : start + _MOST_PARAMS])


def open_mlflow_run(config: TrackingConfig, *, run_name: str, output: Path, resume: bool) -> MlflowRun:
    """The run of the folder ``output``: with ``resume`` the one that ``tracking.json`` there names, else a new one.

    A resumed run whose address nobody gives is looked for where it was, not in today's working directory.

    Raises:
        ConfigError: an address or experiment that MLflow refuses.
    """
    stored = read_run_file(output) if resume else TrackedRun()
    return MlflowRun(
        uri=stored.uri(config.uri),
        experiment=config.experiment,
        run_name=run_name,
        output=output,
        continued=stored.run_id,
    )


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """What MLflow, SQLAlchemy and the network raise, as ``RefusedError`` (for good) or ``AwayError`` (try again)."""
    try:
        yield
    except MlflowException as error:
        # Over HTTP only a body in MLflow's own form is a verdict; a proxy's 404 page is a server that is away.
        verdict = isinstance(error, RestException) or not uri.startswith("http")
        words = " ".join(str(error).split())[:500]
        raise (RefusedError if verdict and error.error_code in _FOR_GOOD else AwayError)(words) from error
    except (SQLAlchemyError, requests.RequestException, OSError) as error:
        raise AwayError(" ".join(str(error).split())[:500]) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _fields(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": type(event).__name__.removesuffix("Event").lower()}
    for name, value in asdict(event).items():
        no_json = isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value))
        fields[name] = str(value) if no_json else value
    return fields
