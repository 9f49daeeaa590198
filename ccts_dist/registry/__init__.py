"""From a checkpoint to a registered model, and from a registered model to predictions."""

from ccts_dist.registry.evaluate import evaluate_split
from ccts_dist.registry.predict import Student, load_student
from ccts_dist.registry.publish import register
from ccts_dist.registry.pull import PulledModel, pull_model, pull_model_on_ranks, resolve_model, resolve_version
from ccts_dist.registry.store import parse_model_name

__all__ = [
    "PulledModel",
    "Student",
    "evaluate_split",
    "load_student",
    "parse_model_name",
    "pull_model",
    "pull_model_on_ranks",
    "register",
    "resolve_model",
    "resolve_version",
]
