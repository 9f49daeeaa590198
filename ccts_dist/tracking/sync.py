"""Sending afterwards what a run has reported while its server was away."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ccts_dist.errors import ConfigError, TrackingError
from ccts_dist.redaction import without_credentials
from ccts_dist.tracking.spooling.delivery import RejectedByServerError, ServerUnavailableError, deliver
from ccts_dist.tracking.spooling.spool import Spool
from ccts_dist.tracking.spooling.spooled_run import FOLDER, QUEUES, SpooledRun, spooled_runs
from ccts_dist.tracking.uri import resolve_tracking_uri

_BATCH_EVENTS = 1_000
"""MLflow takes no more metrics in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """Result of sending."""

    num_sent: int
    num_refused: int
    """Put aside for good: ``*-refused.jsonl`` beside the events gives the reason."""


def sync(output: Path, *, uri: str = "", report: Callable[[str], None] = lambda line: None) -> Synced:
    """Send what waits in a run folder, to the end; all of its runs, oldest first.

    Args:
        output: a run folder.
        uri: the server; "" for MLFLOW_TRACKING_URI, and without that the one each run has.
        report: is given of each run that something is sent of.

    Raises:
        ConfigError: nothing was ever tracked there, or a training is under way in it, which sends by itself.
        TrackingError: the server is away. What it took is not sent again.
    """
    runs = spooled_runs(output) if output.is_dir() else []
    if not runs:
        raise ConfigError(
            f"{output}: no {FOLDER}/ with a tracked run in it. Give a run folder (`output` of its run file)."
        )
    num_sent = num_refused = 0
    for run in runs:
        spools = [spool for name in QUEUES if (spool := Spool(run.folder, name)).num_waiting]
        try:
            sent, refused = _sync_run(run, spools, output, uri, report) if spools else (0, 0)
        finally:
            for spool in spools:
                spool.close()
        num_sent, num_refused = num_sent + sent, num_refused + refused
    return Synced(num_sent=num_sent, num_refused=num_refused)


def _sync_run(
    run: SpooledRun, spools: list[Spool], output: Path, uri: str, report: Callable[[str], None]
) -> tuple[int, int]:
    from ccts_dist.tracking.mlflow_sender import MlflowSender  # late: it takes seconds

    if not uri and not os.environ.get("MLFLOW_TRACKING_URI"):
        uri = run.tracking_uri
    address = resolve_tracking_uri(uri)
    if not all(spool.take() for spool in spools):
        raise ConfigError(
            f"{output}: a training is under way in it, which sends by itself, or another sync is. Wait for its end."
        )
    sender = MlflowSender(address, run, output, patient=True)
    before = sum(spool.num_waiting for spool in spools)
    try:
        sender.connect()
        report(f"{run.folder}: {before:,} events for run {sender.run_id} at {without_credentials(address)}")
        for spool in spools:
            while spool.num_waiting:
                deliver(spool, sender.send, _BATCH_EVENTS)
    except (ServerUnavailableError, RejectedByServerError) as error:
        left = sum(spool.num_waiting for spool in spools)
        verdict = "is away" if isinstance(error, ServerUnavailableError) else f"refuses experiment {run.experiment!r}"
        raise TrackingError(
            f"{without_credentials(address)} {verdict}: {error}. {left:,} of {before:,} events of {run.folder} are "
            "kept. Run the same command again when it is mended, or name another server with --tracking-uri."
        ) from error
    refused = sum(spool.num_refused for spool in spools)
    return before - refused, refused
