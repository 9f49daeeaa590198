"""The model folder that a place on this machine means."""

from pathlib import Path

BEST = "best"
"""Within a run folder: the model folder of its best validation."""

_FILES = ("model.json", "model.safetensors")


def model_folder(place: Path) -> Path:
    """Model folder at ``place``: the best model of a run folder, or else the place itself.

    Args:
        place: a run folder, a model folder, or anything else, which is returned as it is.
    """
    best = place / BEST
    holds_model = any((place / name).is_file() for name in _FILES)
    return best if best.is_dir() and not holds_model else place
