"""Sending of a run's events to an MLflow server: the run is made or found there, and each event becomes a call.

Why no (key, step) is ever there twice, whoever is killed:

* the steps of a key rise, and events leave in the order in which they were made, from one process at a time;
* one ``log_batch`` is one transaction, and the next is not sent before the one before it has succeeded. So what the
  server holds of a key is always a beginning of what the run measured, up to some last step;
* at its first call a sender asks the server for the last step of every key and drops what is at or below it;
* an attempt whose answer got lost is repeated with the same time stamps, and the server keeps one of two events that
  agree in key, step, time stamp and value.

What was sent counts as delivered when the server shows it: a gateway may answer anything with 200 and an empty object.
"""

import hashlib
import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

import requests
from google.protobuf.json_format import ParseError
from sqlalchemy.exc import SQLAlchemyError

from ccts_dist.redaction import redact, shown_cause, without_credentials
from ccts_dist.tracking.events import (
    DatasetEvent,
    Event,
    FileEvent,
    MetricEvent,
    ParamEvent,
    StatusEvent,
    TagEvent,
    TextEvent,
)
from ccts_dist.tracking.mlflow_client import large_transfers, open_client, prepare_mlflow
from ccts_dist.tracking.mlflow_parent import PARENT_ID, UNFOLDED, describe_parent
from ccts_dist.tracking.run_file import TrackedRun, write_run_file
from ccts_dist.tracking.spooling.delivery import RejectedByServerError, ServerUnavailableError
from ccts_dist.tracking.spooling.spooled_run import SpooledRun, is_newest
from ccts_dist.tracking.uri import artifact_location

prepare_mlflow()
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag  # noqa: E402 - after the settings that it reads
from mlflow.exceptions import MlflowException, RestException  # noqa: E402

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_LONGEST_PARAM = 6000  # MLflow's limits, in characters and in entries of one call
_LONGEST_TAG = 5000
_MOST_PARAMS = 100
_LONGEST_DATASET = 500
_LONGEST_DIGEST = 36
_CONTEXT = "mlflow.data.context"
_FOR_GOOD = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
_TOO_LARGE = 413
_NOT_MLFLOW = "it answers, but not as an MLflow server does: see which program or gateway listens there"
_TOKEN = "ccts_dist.token"
_PARENT = "ccts_dist.parent"
_MADE_FOR = "ccts_dist.made_for"


@final
class MlflowSender:
    """One run at one MLflow server. Safe to be used by several threads."""

    def __init__(self, uri: str, run: SpooledRun, output: Path, *, patient: bool = False) -> None:
        """Nothing is asked of the server yet.

        Args:
            uri: resolved address of the server.
            run: what the run folder knows of it.
            output: run folder; ``tracking.json`` is written there.
            patient: let calls take as long as large uploads need.
        """
        self._uri, self._run, self._output, self._patient = uri, run, output, patient
        self._connecting = threading.Lock()
        self._is_connected = False
        self._attempts = 0
        self._params: dict[str, str] = {}
        self._last_step: dict[str, int] = {}
        self._opened: MlflowClient | None = None
        self.began_anew = False
        """True if the server had lost the run, and another was begun."""

    @property
    def run_id(self) -> str:
        """The run's id at the server; "" until a server has been reached once."""
        return self._run.run_id

    def connect(self) -> None:
        """Find or make the run; nothing when that has been done.

        Raises:
            ServerUnavailableError: try again later.
            RejectedByServerError: the server will never have it.
            ConfigError: an address MLflow does not know.
        """
        with self._connecting, _translated(self._uri):
            if not self._is_connected:
                self._connect()
                self._is_connected = True

    def send(self, events: Sequence[Event]) -> None:
        """Events of one kind, in order.

        Raises:
            ServerUnavailableError: try again later.
            RejectedByServerError: the server will never take them.
        """
        self.connect()
        with _translated(self._uri):
            first = events[0]
            if isinstance(first, MetricEvent):
                self._send_metrics([event for event in events if isinstance(event, MetricEvent)])
            elif isinstance(first, ParamEvent):
                self._send_params([event for event in events if isinstance(event, ParamEvent)])
            elif isinstance(first, TagEvent):
                self._send_tags({event.key: event.value for event in events if isinstance(event, TagEvent)})
            elif isinstance(first, DatasetEvent):
                self._send_datasets([event for event in events if isinstance(event, DatasetEvent)])
            elif isinstance(first, StatusEvent):
                self._send_status(first)
            else:
                self._send_file(first)

    @property
    def _client(self) -> "MlflowClient":
        # Opened late: for a database it connects at once, and the database may be away.
        if self._opened is None:
            self._opened = open_client(self._uri)
        return self._opened

    def _connect(self) -> None:
        self._attempts += 1
        run = self._find_run() if self._run.run_id else None
        if run is None:
            run = self._create_run()
        if not run.info.run_id:
            raise ServerUnavailableError(_NOT_MLFLOW)
        self._params = dict(run.data.params)
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if is_newest(self._run, self._output):
            tracked = TrackedRun(tracking_uri=self._uri, experiment=self._run.experiment, run_id=run.info.run_id)
            write_run_file(self._output, tracked)
        self._run = self._run.known_as(run.info.run_id, self._uri)

    def _find_run(self) -> Run | None:
        """The run to go on with; None, after a warning, when the server has no such run (any more)."""
        try:
            run = self._client.get_run(self._run.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.run_id != self._run.run_id:
                raise ServerUnavailableError(_NOT_MLFLOW)
            if run.info.lifecycle_stage == "active":
                return run
        self.began_anew = True
        log.warning(
            "tracking: %s has no run %s any more; a new one is begun", without_credentials(self._uri), self._run.run_id
        )
        return None

    def _create_run(self) -> Run:
        experiment = self._client.get_experiment_by_name(self._run.experiment)
        experiment_id = self._create_experiment() if experiment is None else experiment.experiment_id
        if not experiment_id:
            raise ServerUnavailableError(_NOT_MLFLOW)
        if self._attempts > 1 or not self._run.is_new:  # an earlier attempt may have made it and lost the answer
            found = self._client.search_runs([experiment_id], f"tags.`{_TOKEN}` = '{self._run.token}'")
            if found:
                return found[0]
        tags = {**self._run.tags, _TOKEN: self._run.token}
        if self._run.run_id:
            tags["ccts_dist.continues"] = self._run.run_id
        if self._run.parent:
            tags |= {PARENT_ID: self._parent_id(experiment_id), **UNFOLDED}
        return self._client.create_run(
            experiment_id, run_name=self._run.run_name, tags=tags, start_time=self._run.began_ms
        )

    def _parent_id(self, experiment_id: str) -> str:
        """The run of that name in the experiment; made if it is not there. Jobs that make it at once agree on one."""
        name = self._run.parent
        digest = hashlib.sha256(name.encode()).hexdigest()  # any name can be asked for
        wanted = f"tags.`{_PARENT}` = '{digest}'"
        found = self._client.search_runs([experiment_id], wanted)
        if not found:
            tags = {**self._run.tags, _PARENT: digest, _MADE_FOR: self._run.token}
            own = self._client.create_run(experiment_id, run_name=name, tags=tags)
            self._client.set_terminated(own.info.run_id, "FINISHED")
            found = self._client.search_runs([experiment_id], wanted)
        first = _first(found)
        for run in found:  # also those of attempts that failed half-way
            if run.data.tags.get(_MADE_FOR) == self._run.token and run.info.run_id != first:
                self._client.delete_run(run.info.run_id)
        return first

    def _create_experiment(self) -> str:
        name = self._run.experiment
        try:
            return self._client.create_experiment(name, artifact_location=artifact_location(self._uri, name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = self._client.get_experiment_by_name(name)  # another job was faster
        if experiment is None:
            raise ServerUnavailableError(f"experiment {name!r} exists and cannot be read")
        return experiment.experiment_id

    def _send_metrics(self, events: Sequence[MetricEvent]) -> None:
        last, new = dict(self._last_step), []
        for event in events:
            if event.step > last.get(event.key, -1):
                last[event.key] = event.step
                new.append(Metric(event.key, event.value, event.timestamp_ms, event.step))
        if new:
            self._client.log_batch(self.run_id, metrics=new)
            there = {metric.key: metric.step for metric in self._read_run().data.to_proto().metrics}
            _expect({metric.key: last[metric.key] for metric in new}.items() <= there.items())
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
            self._client.log_batch(self.run_id, params=entries[start : start + _MOST_PARAMS])
        if new:
            _expect(new.keys() <= self._read_run().data.params.keys())
        self._params.update(new)
        self._send_tags(changed)

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        entries = [
            RunTag(key, value if len(value) <= _LONGEST_TAG else value[: _LONGEST_TAG - 3] + "...")
            for key, value in tags.items()
        ]
        for start in range(0, len(entries), _MOST_PARAMS):
            self._client.log_batch(self.run_id, tags=entries[start : start + _MOST_PARAMS])
        if tags:
            _expect(tags.keys() <= self._read_run().data.tags.keys())

    def _send_datasets(self, events: Sequence[DatasetEvent]) -> None:
        inputs = [
            DatasetInput(
                Dataset(
                    event.name[:_LONGEST_DATASET],
                    event.digest[:_LONGEST_DIGEST],
                    "http" if event.source.startswith("http") else "local",
                    json.dumps({"uri": event.source}),
                    profile=event.profile,
                ),
                [InputTag(_CONTEXT, event.context)],
            )
            for event in events
        ]
        self._client.log_inputs(self.run_id, datasets=inputs)
        there = {(one.dataset.name, one.dataset.digest) for one in _inputs_of(self._read_run())}
        _expect({(one.dataset.name, one.dataset.digest) for one in inputs} <= there)

    def _send_status(self, event: StatusEvent) -> None:
        if event.status == "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, event.status, end_time=event.timestamp_ms)
        run = self._read_run()
        _expect(run.info.status == event.status)
        if event.status != "RUNNING":
            describe_parent(self._client, run)

    def _read_run(self) -> Run:
        run = self._client.get_run(self.run_id)
        _expect(run.info.run_id == self.run_id)
        return run

    def _send_file(self, event: FileEvent | TextEvent) -> None:
        if isinstance(event, TextEvent):
            self._client.log_text(self.run_id, event.text, event.name)
            self._read_run()
            return
        path = self._output / event.path
        if not path.is_file():
            raise RejectedByServerError(f"{path} is not there")
        if self._patient:
            with large_transfers():
                self._client.log_artifact(self.run_id, str(path), event.folder or None)
        else:
            self._client.log_artifact(self.run_id, str(path), event.folder or None)
        self._read_run()


def _expect(is_there: bool) -> None:
    """Raises: ServerUnavailableError, where the server does not show what it has taken, or shows it for another run."""
    if not is_there:
        raise ServerUnavailableError(_NOT_MLFLOW)


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Errors of MLflow, SQLAlchemy, stores and the network, as rejected by the server or as a server out of reach."""
    try:
        yield
    except MlflowException as error:
        # Over HTTP only a body in MLflow's own form is a verdict; a proxy's 404 page is a server that is away.
        verdict = isinstance(error, RestException) or not uri.startswith("http")
        raise (RejectedByServerError if verdict and error.error_code in _FOR_GOOD else ServerUnavailableError)(
            _words(error)
        ) from shown_cause(error)
    except requests.HTTPError as error:
        too_large = error.response is not None and error.response.status_code == _TOO_LARGE
        raise (RejectedByServerError if too_large else ServerUnavailableError)(_words(error)) from shown_cause(error)
    except (SQLAlchemyError, requests.RequestException, OSError) as error:
        raise ServerUnavailableError(_words(error)) from shown_cause(error)
    except ImportError as error:  # where the server names a store that clients reach by themselves
        raise RejectedByServerError(
            f"{_words(error)}. Install the package {error.name} beside ccts_dist"
        ) from shown_cause(error)
    except _store_errors() as error:
        raise ServerUnavailableError(_words(error)) from shown_cause(error)
    except (ValueError, ParseError) as error:  # an answer that MLflow cannot read
        raise ServerUnavailableError(f"{_NOT_MLFLOW} ({type(error).__name__}: {_words(error)})") from shown_cause(error)


def _store_errors() -> tuple[type[Exception], ...]:
    """Errors that boto3 raises, if anything has imported it by now."""
    botocore, boto3 = sys.modules.get("botocore.exceptions"), sys.modules.get("boto3.exceptions")
    found: list[type[Exception]] = []
    if botocore is not None:
        found += [botocore.BotoCoreError, botocore.ClientError]
    if boto3 is not None:
        found.append(boto3.exceptions.Boto3Error if hasattr(boto3, "exceptions") else boto3.Boto3Error)
    return tuple(found)


def _inputs_of(run: Run) -> Sequence[DatasetInput]:
    return [] if run.inputs is None else run.inputs.dataset_inputs


def _first(runs: Sequence[Run]) -> str:
    """The id of the run that began first; the same for everyone who asks."""
    return min((run.info.start_time, run.info.run_id) for run in runs)[1]


def _words(error: Exception) -> str:
    return " ".join(redact(str(error)).split())[:500]
