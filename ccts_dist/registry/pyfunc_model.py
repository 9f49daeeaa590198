"""The MLflow model: decodes audio files and predicts emotion with the installed ``ccts_dist``.

MLflow keeps a copy of this file with each registered model and runs it when the model is loaded through MLflow. So it
says as little as possible. ``ccts_dist.load_student`` and ``launch/predict.py`` do not run it.
"""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ccts_dist.registry.package import check_package
from ccts_dist.registry.predict import load_student


class EmotionPyfunc(PythonModel):
    """One column ``audio`` of encoded audio files in; the columns of ``Student.predict`` out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the package's digests, then load its weights."""
        package = Path(context.artifacts["package"])
        check_package(package)
        self._student = load_student(package)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - the base declares no result
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Row by row: the bytes of an audio file, or the same in base64."""
        files = [
            io.BytesIO(base64.b64decode(cell, validate=True) if isinstance(cell, str) else bytes(cell))
            for cell in model_input["audio"]
        ]
        return pd.DataFrame(self._student.predict(files), columns=list(self._student.columns))


set_model(EmotionPyfunc())
