"""Cross-modal conditional teacher-student training for speech emotion recognition. Importing it starts nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccts_dist.inference.predictor import load_student

__version__ = "0.2.0"

__all__ = ["__version__", "load_student"]


def __getattr__(name: str) -> Any:
    """``ccts_dist.load_student``, which imports torch only when it is asked for."""
    if name == "load_student":
        from ccts_dist.inference.predictor import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
