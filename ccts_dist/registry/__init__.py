"""From a checkpoint to a registered model, and from a registered model to predictions."""

from ccts_dist.inference.predictor import Predictor, load_student
from ccts_dist.registry.model_uri import parse_model_uri
from ccts_dist.registry.publish import register
from ccts_dist.registry.pull import (
    PulledModel,
    is_address,
    pull_model,
    pull_model_on_ranks,
    resolve_model,
    resolve_version,
)

__all__ = [
    "Predictor",
    "PulledModel",
    "is_address",
    "load_student",
    "parse_model_uri",
    "pull_model",
    "pull_model_on_ranks",
    "register",
    "resolve_model",
    "resolve_version",
]
