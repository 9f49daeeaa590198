"""From a checkpoint to a version in the registry."""

import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccts_dist.config import read_run
from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.files.model_folders import model_folder
from ccts_dist.inference.predictor import AUDIO, CATEGORY, PATH, answer_columns
from ccts_dist.limits import read_limited
from ccts_dist.model import load_model
from ccts_dist.registry.card_data import without_metadata
from ccts_dist.registry.lineage import (
    LINEAGE_FILE,
    PREPROCESSING_FILE,
    lineage_of,
    preprocessing_of,
    version_tags,
)
from ccts_dist.registry.logged_model import create_logged_model, finish_logged_model, link_version
from ccts_dist.registry.model_card import card_of
from ccts_dist.registry.model_uri import DIGEST_TAG, PACKAGE, asking_the_server, check_alias, check_name, move_alias
from ccts_dist.registry.package import CARD_FILE, DIGESTS_FILE, METRICS_FILE, RUN_FILE, WEIGHTS_FILE, write_package
from ccts_dist.tracking.environment import source_tags
from ccts_dist.tracking.mlflow_client import large_transfers, open_client
from ccts_dist.tracking.mlflow_parent import NOTE
from ccts_dist.tracking.run_file import TrackedRun, read_run_file
from ccts_dist.tracking.uri import artifact_location

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SUMMARY_FILE = "summary.json"
"""The file that training leaves in its run folder."""

_LONGEST_DESCRIPTION = 5_000
_EXPERIMENT = "ccts"
"""Holds models whose run is unknown to the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model to be registered, and what lies around it."""

    model: Path
    run_file: Path | None
    metrics: Mapping[str, Any] | None
    tracked: TrackedRun


def register(
    checkpoint: Path,
    name: str,
    *,
    alias: str = "candidate",
    tracking_uri: str = "",
    run_id: str = "",
) -> str:
    """Package a model, register it, point ``alias`` at it, and return its version.

    The alias moves last: whoever follows it never sees half a model.

    Args:
        checkpoint: a run folder (its best model is taken), or a model folder.
        name: of the registered model; created if new.
        alias: moved to the new version; "" moves none.
        tracking_uri: server; "" for ``MLFLOW_TRACKING_URI``, else the run folder's own, else the default.
        run_id: the run it belongs to; "" for the run folder's own.

    Raises:
        ConfigError: no model there, or a name or address that cannot be.
        RegistryError: the server failed or refused.
    """
    check_name(name, "model name")
    if alias:
        check_alias(alias)
    found = find_checkpoint(checkpoint)
    uri = found.tracked.uri(tracking_uri)
    run_id = run_id or found.tracked.run_id
    with tempfile.TemporaryDirectory(prefix="ccts-register-") as scratch, large_transfers():
        with asking_the_server(uri, f"registering {name!r}"):
            client = open_client(uri)
            tags = _run_tags(client, run_id)
            if tags is None:
                run_id = _new_run(client, uri, name)
        package = Path(scratch) / PACKAGE
        digests, version_tags, columns = _fill_package(found, package, name, run_id, tags or {})
        model = Path(scratch) / "model"
        _save_mlflow_model(package, model, columns)
        with asking_the_server(uri, f"registering {name!r}"):
            return _store(client, model, name, alias, run_id, digests, version_tags)


def find_checkpoint(folder: Path) -> Checkpoint:
    """The model in a run folder (``best/``) or a model folder, with the run file, figures and run id that lie there.

    A model folder within a run folder goes with what lies in the run folder, unless it has a run file of its own.

    Raises:
        ConfigError: there is no model, or its figures are not what training writes.
    """
    model = model_folder(folder)
    if not (model / WEIGHTS_FILE).is_file():
        raise ConfigError(
            f"{folder}: holds no model ({WEIGHTS_FILE} in the folder itself or in best/). "
            "Give a run folder whose training has saved its best model, or a model folder."
        )
    home, above = folder, folder.resolve().parent
    if model == folder and not (folder / RUN_FILE).is_file() and (above / RUN_FILE).is_file():
        home = above
    around = (model, home)
    run_file = next((place / RUN_FILE for place in around if (place / RUN_FILE).is_file()), None)
    files = [place / name for place in around for name in (METRICS_FILE, _SUMMARY_FILE)]
    metrics_file = next((path for path in files if path.is_file()), None)
    metrics = None if metrics_file is None else _read_figures(metrics_file)
    return Checkpoint(model=model, run_file=run_file, metrics=metrics, tracked=read_run_file(home))


def _read_figures(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(read_limited(path, "figures of a run")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: not the figures of a run ({words}). Restore it, or delete it.") from error


def _run_tags(client: "MlflowClient", run_id: str) -> dict[str, str] | None:
    """The tags of a run; None when the server does not know it."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        return dict(client.get_run(run_id).data.tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _new_run(client: "MlflowClient", uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    experiment_id = _new_experiment(client, uri) if experiment is None else experiment.experiment_id
    run = client.create_run(experiment_id, run_name=f"register {name}", tags=source_tags())
    client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id


def _new_experiment(client: "MlflowClient", uri: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(_EXPERIMENT, artifact_location=artifact_location(uri, _EXPERIMENT))
    except MlflowException as error:
        experiment = client.get_experiment_by_name(_EXPERIMENT)  # another job was faster
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return experiment.experiment_id


def _fill_package(
    found: Checkpoint, package: Path, name: str, run_id: str, run_tags: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """Write the package; its digests, the version's other tags and the columns of the model's answers come back."""
    loaded = load_model(found.model)  # a model that cannot be loaded is not registered
    run_name = loaded.extra.get("run", "") or ("" if found.run_file is None else read_run(found.run_file).run_name)
    lineage, preprocessing = lineage_of(loaded, run_id, run_name, run_tags), preprocessing_of(loaded)
    card = card_of(loaded, name=name, lineage=lineage, metrics=found.metrics)
    documents = {LINEAGE_FILE: lineage, PREPROCESSING_FILE: preprocessing}
    digests = write_package(
        found.model, package, card=card, run_file=found.run_file, metrics=found.metrics, documents=documents
    )
    columns = answer_columns(loaded.config.targets, loaded.config.categories)
    return digests, version_tags(loaded, lineage, preprocessing), columns


def _save_mlflow_model(package: Path, out: Path, columns: Sequence[str]) -> None:
    """An MLflow model from code around the package: no pickle, no path of this machine."""
    import yaml

    code = Path(__file__).with_name("pyfunc_model.py")
    with warnings.catch_warnings():
        # MLflow warns of its own type hints when imported, and wants an example: a recording, which it would run.
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import AnyType

        mlflow.pyfunc.save_model(
            str(out),
            python_model=str(code),
            artifacts={PACKAGE: str(package)},
            signature=ModelSignature(
                # Not "binary": MLflow would decode it all, whatever its size, and skip what is not base64.
                inputs=Schema([ColSpec(AnyType(), column, required=False) for column in (AUDIO, PATH)]),
                outputs=Schema(
                    [ColSpec(DataType.string if column == CATEGORY else DataType.double, column) for column in columns]
                ),
            ),
            pip_requirements=[f"ccts-dist=={installed_version('ccts-dist')}"],
        )
    description = out / "MLmodel"
    tree = yaml.safe_load(description.read_text(encoding="utf-8"))
    flavor = tree["flavors"]["python_function"]
    # MLflow notes where code and artifacts came from; it looks for them inside the model only.
    flavor["model_code_path"] = code.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    description.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _store(
    client: "MlflowClient",
    model: Path,
    name: str,
    alias: str,
    run_id: str,
    digests: Mapping[str, str],
    tags: Mapping[str, str],
) -> str:
    from mlflow.exceptions import MlflowException

    run = client.get_run(run_id)
    tags = {f"{DIGEST_TAG}{DIGESTS_FILE}": digests[DIGESTS_FILE], **tags}  # of the list of digests: stands for all
    card = without_metadata((model / "artifacts" / PACKAGE / CARD_FILE).read_text(encoding="utf-8"))
    logged = create_logged_model(client, run, name, {**tags, NOTE: shortened(card)})
    if logged is None:
        # Named by content: registering another model of the same run must not overwrite this one.
        place = f"models/{digests[DIGESTS_FILE][:16]}"
        client.log_artifacts(run_id, os.fspath(model), place)
        source, model_id = f"{run.info.artifact_uri}/{place}", None
    else:
        client.log_model_artifacts(logged.model_id, os.fspath(model))
        finish_logged_model(client, run, logged)
        source, model_id = logged.artifact_location, logged.model_id
    try:
        client.create_registered_model(name, description=card.partition("\n")[0])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name, source, run_id, tags=tags, description=shortened(card), model_id=model_id
    )
    if not created.version:
        raise RegistryError(
            f"registering {name!r}: the server answers, but not as MLflow does. See what listens there."
        )
    if logged is not None:
        link_version(client, logged, name, str(created.version))
    if alias:
        move_alias(client, name, alias, created.version)
    return str(created.version)


def shortened(card: str) -> str:
    """A model card as a version's description: whole lines, since databases hold 5,000 characters of it.

    >>> shortened("# a")
    '# a'
    """
    if len(card) <= _LONGEST_DESCRIPTION:
        return card
    rest = f"\n\nThe rest is in `{CARD_FILE}`."
    return card[: _LONGEST_DESCRIPTION - len(rest)].rpartition("\n")[0] + rest
