"""Run files and ds_configs that come with the package; in a checkout the folders here are links to them."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent

_RUNS = ("runs", "launch/runs")
_DS_CONFIGS = ("ds_configs", "ds_configs")
"""Folder here, and its name in a checkout."""


def find_run_file(path: Path) -> Path:
    """The file or folder itself where there is one, else the shipped one of that name.

    ``launch/runs/demo/cts.toml`` and ``demo/cts.toml`` both name ``runs/demo/cts.toml`` here.
    """
    return path if os.path.exists(path) else _shipped(path, *_RUNS) or path


def find_ds_config(path: Path) -> Path:
    """The file itself where there is one, else the shipped one of that name, with or without ``ds_configs/``."""
    return path if os.path.exists(path) else _shipped(path, *_DS_CONFIGS) or path


def find_shipped(path: Path) -> Path | None:
    """The shipped run file or ds_config of that name, whatever the working directory has."""
    return _shipped(path, *_RUNS) or _shipped(path, *_DS_CONFIGS)


def _shipped(path: Path, folder: str, in_checkout: str) -> Path | None:
    if path.is_absolute() or ".." in path.parts:
        return None
    found = FOLDER / folder / (path.relative_to(in_checkout) if path.is_relative_to(in_checkout) else path)
    return found if os.path.exists(found) else None
