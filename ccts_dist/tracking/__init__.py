"""Tracking of runs: a small protocol, with MLflow, TensorBoard, both or nothing behind it."""

from pathlib import Path

from ccts_dist.config.schema import TrackingConfig
from ccts_dist.tracking.null import NoTracking
from ccts_dist.tracking.protocol import Status, Tracking
from ccts_dist.tracking.several import SeveralTrackings

__all__ = ["NoTracking", "Status", "Tracking", "open_tracking"]


def open_tracking(config: TrackingConfig, *, run_name: str, output: Path, resume: bool) -> Tracking:
    """Open the tracking that ``config`` asks for; only rank 0 calls it, the others hold a ``NoTracking``.

    With MLflow it takes some seconds: importing it, and creating a new SQLite file's tables. A server that is away
    does not stop it.

    Args:
        config: which kind, where.
        run_name: for people.
        output: run folder; remembers its run in ``tracking.json``.
        resume: go on with the folder's run, if it has one.

    Raises:
        ConfigError: an address or experiment that MLflow refuses.
        ModuleNotFoundError: the package of the backend is not installed.
    """
    if config.backend == "none":
        return NoTracking()
    opened: list[Tracking] = []
    if "mlflow" in config.backend:
        from ccts_dist.tracking.mlflow_run import open_mlflow_run

        opened.append(open_mlflow_run(config, run_name=run_name, output=output, resume=resume))
    if "tensorboard" in config.backend:
        from ccts_dist.tracking.tensorboard_run import TensorBoardRun

        opened.append(TensorBoardRun(output, run_name=run_name, resume=resume))
    return opened[0] if len(opened) == 1 else SeveralTrackings(*opened)
