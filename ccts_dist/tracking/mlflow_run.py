"""A run followed in MLflow: reported to files at once, sent by threads of their own."""

import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

from ccts_dist.config.schema import TrackingConfig
from ccts_dist.errors import ConfigError
from ccts_dist.process.invocation import as_started
from ccts_dist.records import Condition
from ccts_dist.redaction import redact, redact_addresses, without_credentials
from ccts_dist.tracking.environment import source_tags
from ccts_dist.tracking.events import (
    DatasetEvent,
    FileEvent,
    MetricEvent,
    ParamEvent,
    StatusEvent,
    TagEvent,
    TextEvent,
)
from ccts_dist.tracking.mlflow_parent import NOTE
from ccts_dist.tracking.mlflow_sender import MlflowSender
from ccts_dist.tracking.protocol import Status, flat_settings
from ccts_dist.tracking.run_file import forget_run_file, read_run_file
from ccts_dist.tracking.spooling.delivery import RejectedByServerError, ServerUnavailableError
from ccts_dist.tracking.spooling.outbox import Outbox
from ccts_dist.tracking.spooling.spool import Spool
from ccts_dist.tracking.spooling.spooled_run import QUEUES, SpooledRun, begin_run, spooled_runs

log = logging.getLogger(__name__)

CONNECT_S = 30.0
"""Longest time that a training waits for a server before its first step."""

FLUSH_S = 5.0
CLOSE_S = 20.0


@final
class MlflowRun:
    """One run at one MLflow server; see ``Tracking`` for what its methods promise.

    What is reported is on disk when a method returns. Safe to use while the server is away, from the first moment on:
    the run is then created later, by this process or another one.
    """

    def __init__(self, *, uri: str, run: SpooledRun, output: Path, close_s: float = CLOSE_S) -> None:
        """Open a run.

        Args:
            uri: resolved address of the server.
            run: new, or one to go on with.
            output: run folder.
            close_s: longest time ``close`` waits for the server, seconds.

        Raises:
            ConfigError: an address or experiment that MLflow refuses.
        """
        self._output, self._spooled, self._close_s = output, run, close_s
        self._closed = False
        self._sender = MlflowSender(uri, run, output)
        try:
            self._connect_in_time(uri)
        except ServerUnavailableError as error:
            log.warning("tracking: the server is away; training goes on, events are kept: %s", error)
        except RejectedByServerError as error:
            raise ConfigError(
                f"tracking: {without_credentials(uri)} refuses experiment {run.experiment!r}: {error}. "
                "Change tracking.tracking_uri or tracking.experiment_name in the run file."
            ) from error
        events, files = (Spool(run.folder, name) for name in QUEUES)
        if self._sender.began_anew:
            events.forget_steps()
        self._events = Outbox(self._sender.send, events)
        self._files = Outbox(self._sender.send, files, what="files cannot be uploaded")
        if not run.is_new:
            self._events.put(StatusEvent("RUNNING", _now_ms()))

    def _connect_in_time(self, uri: str) -> None:
        """Connect; give up on a server after a while, which may send an answer byte by byte for hours.

        Raises:
            ServerUnavailableError: it is away, or too slow. A thread keeps waiting for it.
            RejectedByServerError: it will never have the run.
        """
        if not uri.startswith("http"):
            self._sender.connect()
            return
        outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def connect() -> None:
            try:
                self._sender.connect()
            except (ServerUnavailableError, RejectedByServerError, ConfigError) as error:
                outcome.put(error)
            else:
                outcome.put(None)

        threading.Thread(target=connect, name="tracking-connect", daemon=True).start()
        try:
            error = outcome.get(timeout=CONNECT_S)
        except queue.Empty:
            raise ServerUnavailableError(
                f"no whole answer of {without_credentials(uri)} within {CONNECT_S:g} s"
            ) from None
        if error is not None:
            raise error

    @property
    def run_id(self) -> str:
        """The run's id at the server; "" until the server has been reached once."""
        return self._sender.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; one that a continued run has with another value is logged as the tag ``changed.<key>``."""
        self._events.put(*(ParamEvent(key, redact_addresses(text)) for key, text in flat_settings(values)))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Measured values; kept once per (key, step)."""
        now = _now_ms()
        self._events.put(*(MetricEvent(key, float(value), int(step), now) for key, value in values.items()))

    def tags(self, values: Mapping[str, str]) -> None:
        """Facts that may change."""
        self._events.put(*(TagEvent(key, redact(str(value))) for key, value in values.items()))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, read when it is sent."""
        path, output = Path(path).absolute(), self._output.absolute()
        self._files.put(FileEvent(path.relative_to(output) if path.is_relative_to(output) else path, folder))

    def text(self, text: str, name: str) -> None:
        """A small file by its content."""
        self._files.put(TextEvent(text, name))

    def description(self, text: str) -> None:
        """Markdown, shown above the run's figures."""
        self.tags({NOTE: text})

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
        """Data sets in MLflow's form, digests as tags ``data.*``, and all in the artifact ``inputs/data.json``."""
        data = {
            "shard_set_digest": shard_set_digest,
            "splits": dict(splits),
            "cache_digest": cache_digest,
            "condition": None if condition is None else asdict(condition),
        }
        self.tags({"data.shard_set_digest": shard_set_digest, "data.splits": json.dumps(dict(splits))})
        profile = json.dumps({"splits": dict(splits), "utterances": sum(splits.values())})
        sets = [DatasetEvent(corpus or "shard set", shard_set_digest, without_credentials(shards), profile, "training")]
        if cache_digest:
            self.tags({"data.cache_digest": cache_digest})
            sets.append(DatasetEvent("teacher cache", cache_digest, without_credentials(cache), "{}", "distillation"))
        self._events.put(*sets)
        self.text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "inputs/data.json")

    def flush(self) -> None:
        """Send what is buffered; at most a few seconds."""
        self._events.flush(FLUSH_S)

    def close(self, status: Status) -> None:
        """End the run. What cannot be sent within a bounded time stays in the run folder, for ``launch/sync.py``."""
        if self._closed:
            return
        self._closed = True
        self._events.put(StatusEvent(status, _now_ms()))
        until = time.monotonic() + self._close_s
        num_left = sum(box.close(max(0.0, until - time.monotonic())) for box in (self._events, self._files))
        if num_left:
            log.warning(
                as_started(
                    "tracking: %d events did not reach the server; they are kept in %s. Send them later: python "
                    "launch/sync.py %s"
                ),
                num_left,
                self._spooled.folder,
                self._output,
            )


def open_mlflow_run(config: TrackingConfig, *, run_name: str, output: Path, resume: bool) -> MlflowRun:
    """The run of the folder ``output``: with ``resume`` the newest that it knows, if any, else a new one.

    A resumed run whose address nobody gives is looked for where it was, not in today's working directory.

    Raises:
        ConfigError: an address or experiment that MLflow refuses.
    """
    tracked = read_run_file(output) if resume else forget_run_file(output)
    known = spooled_runs(output) if resume else []
    if known and not tracked.tracking_uri:  # no server has been reached yet
        tracked = replace(tracked, tracking_uri=known[-1].tracking_uri)
    uri = tracked.uri(config.tracking_uri)
    if known:
        run = replace(known[-1], experiment=config.experiment_name)
    else:
        run = begin_run(
            output,
            run_name=run_name,
            experiment=config.experiment_name,
            parent=config.parent_run_name,
            tracking_uri=uri,
            tags=source_tags(),
        )
        if tracked.run_id:  # of a folder without spools
            run = replace(run, run_id=tracked.run_id, is_new=False)
    return MlflowRun(uri=uri, run=run, output=output)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
