"""MLflow 3's logged models: a model of a run, with its scores, on the run's page and on that of its experiment."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

_SCORES = "test/"
_TYPE = "speech emotion recognition"
_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


def create_logged_model(client: "MlflowClient", run: "Run", name: str, tags: Mapping[str, str]) -> "LoggedModel | None":
    """A logged model of a run, without files; None on a server that has no such models.

    Args:
        name: of the registered model.
    """
    from mlflow.exceptions import MlflowException

    name = re.sub(r"[/:.%\"']", "-", name)
    try:
        return client.create_logged_model(
            run.info.experiment_id, name, run.info.run_id, tags=dict(tags), model_type=_TYPE
        )
    except MlflowException as error:
        if error.get_http_status_code() not in _ABSENT:
            raise
        return None


def finish_logged_model(client: "MlflowClient", run: "Run", model: "LoggedModel") -> None:
    """Make a logged model ready, an output of its run, and give it the run's test scores.

    The scores are those that the run has, with their steps and times, so they are no new points of its curves. They
    refer to the shard set that the run was given.
    """
    from mlflow.entities import LoggedModelOutput, Metric

    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    inputs = [] if run.inputs is None else run.inputs.dataset_inputs
    data = {"dataset_name": inputs[0].dataset.name, "dataset_digest": inputs[0].dataset.digest} if inputs else {}
    latest = [
        client.get_metric_history(run.info.run_id, key)[-1] for key in run.data.metrics if key.startswith(_SCORES)
    ]
    scores = [
        Metric(one.key, one.value, one.timestamp, one.step, model_id=model.model_id, run_id=run.info.run_id, **data)
        for one in latest
    ]
    if scores:
        client.log_batch(run.info.run_id, metrics=scores)


def link_version(client: "MlflowClient", model: "LoggedModel", name: str, version: str) -> None:
    """Show a registered version on the page of its logged model, as servers do; a database alone does not."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    if MLFLOW_MODEL_VERSIONS not in client.get_logged_model(model.model_id).tags:
        versions = json.dumps([{"name": name, "version": int(version)}])
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: versions})
