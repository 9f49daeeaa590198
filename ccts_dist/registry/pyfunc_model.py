"""The MLflow model: what ``mlflow models serve`` and ``mlflow.pyfunc.load_model`` run.

MLflow keeps a copy of this file with each registered model and runs it when the model is loaded through MLflow. So it
states as little as possible; all that it does is in the installed ``ccts_dist``. ``ccts_dist.load_student`` and
``launch/predict.py`` do not run it.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ccts_dist.serving.handler import open_served


class EmotionPyfunc(PythonModel):
    """Rows of ``audio`` (base64) or ``path`` in; the columns of ``Student.predict`` out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check every file's digest, then load the weights."""
        self._served = open_served(Path(context.artifacts["package"]))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - the base declares no result
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Row by row, an answer or one refusal for all."""
        return self._served.predict(model_input)


set_model(EmotionPyfunc())
