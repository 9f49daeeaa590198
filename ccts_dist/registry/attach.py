"""Files that belong to a model, put into the run it comes from."""

from pathlib import Path

from ccts_dist.errors import ConfigError
from ccts_dist.registry.hub import HUB_SCHEME
from ccts_dist.registry.model_uri import asking_the_server
from ccts_dist.registry.pull import PulledModel
from ccts_dist.tracking.mlflow_client import large_transfers, open_client
from ccts_dist.tracking.run_file import TrackedRun, read_run_file
from ccts_dist.tracking.uri import resolve_tracking_uri

FOLDER = "evaluation"
"""Folder of the run's artifacts."""


def attach(file: Path, pulled: PulledModel, *, tracking_uri: str = "") -> str:
    """Put a file among the artifacts of the run that a model comes from; the run's id.

    Args:
        file: is overwritten there if it has been put there before.
        pulled: a registered model, or a model folder in the run folder of a tracked run.
        tracking_uri: server; "" for the default, which for a folder is where its run was tracked.

    Raises:
        ConfigError: the folder's run was not tracked.
        RegistryError: the server failed or refused.
    """
    if pulled.version.startswith(HUB_SCHEME):
        raise ConfigError(
            f"{pulled.version}: comes from the hub, which has no run of it to put anything into. Leave --log-to-mlflow "
            "out, or name a registered model."
        )
    tracked = TrackedRun() if pulled.version else _run_of_folder(pulled.folder)
    uri = tracked.uri(tracking_uri) if tracked.run_id else resolve_tracking_uri(tracking_uri)
    with large_transfers(), asking_the_server(uri, f"putting {file.name} into the model's run"):
        client = open_client(uri)
        run_id = tracked.run_id
        if pulled.version:
            name, _, version = pulled.version.rpartition("/")
            run_id = client.get_model_version(name, version).run_id or ""
        client.log_artifact(run_id, str(file), FOLDER)
    return run_id


def _run_of_folder(folder: Path) -> TrackedRun:
    for home in (folder, folder.resolve().parent):
        if (tracked := read_run_file(home)).run_id:
            return tracked
    raise ConfigError(
        f"{folder}: the run it comes from was not tracked, so there is none to put anything into. "
        "Leave --log-to-mlflow out, or name a registered model."
    )
