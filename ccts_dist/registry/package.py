"""A model folder made ready to be handed on: weights, settings, run file, figures, model card, and a digest of each.

Nothing in a package is pickled, and nothing in it is code.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccts_dist.errors import RegistryError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.files.digests import is_digest
from ccts_dist.files.strict_json import json_text
from ccts_dist.limits import parse_json, read_limited

DIGESTS_FILE = "digests.json"
"""In the package: SHA-256 of every other file, by path."""

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "MODEL_CARD.md"
RUN_FILE = "run.toml"
METRICS_FILE = "metrics.json"

_PICKLES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib"}


def write_package(
    model_folder: Path,
    package: Path,
    *,
    card: str,
    run_file: Path | None = None,
    metrics: Mapping[str, Any] | None = None,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Copy a model folder to ``package`` with what belongs next to it; the SHA-256 of every file, by path, comes back.

    Args:
        model_folder: made by ``model.save_model``.
        package: is created; must not exist.
        card: text of the model card.
        run_file: the run the model comes from.
        metrics: its figures.
        documents: further JSON, by file name.

    Raises:
        RegistryError: the folder holds a file that may be a pickle.
    """
    for path in files_of(model_folder):
        if path.suffix.lower() in _PICKLES:
            raise RegistryError(f"{path}: may be a pickle, and packages hold none. Move it out of the model folder.")
    shutil.copytree(model_folder, package)
    (package / CARD_FILE).write_text(card, encoding="utf-8")
    if run_file is not None:
        shutil.copyfile(run_file, package / RUN_FILE)
    trees = {} if metrics is None else {METRICS_FILE: metrics}
    for name, tree in (trees | dict(documents or {})).items():
        (package / name).write_text(json_text(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    digests = {path.relative_to(package).as_posix(): file_sha256(path) for path in files_of(package)}
    digests.pop(DIGESTS_FILE, None)
    (package / DIGESTS_FILE).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {**digests, DIGESTS_FILE: file_sha256(package / DIGESTS_FILE)}


def check_package(package: Path) -> None:
    """Hold a package against its own ``digests.json``. Finds damage; against malice only a registry's tags help.

    Raises:
        RegistryError: names the file and both digests.
    """
    path = package / DIGESTS_FILE
    digests = _read_digests(package)
    check_digests(package, {**digests, DIGESTS_FILE: file_sha256(path)}, source=str(path))


def _read_digests(package: Path) -> dict[str, str]:
    path = package / DIGESTS_FILE
    try:
        digests = parse_json(read_limited(path, DIGESTS_FILE))
        if not isinstance(digests, dict) or not all(
            isinstance(one, str) and is_digest(one) for one in digests.values()
        ):
            raise ValueError("no object of a SHA-256 by path")
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: not readable: {error}. Pull or register the model again.") from error
    return digests


def check_digests(folder: Path, digests: Mapping[str, str], *, source: str) -> None:
    """Hold every file of a folder against the digests that ``source`` gives; no file may be missing or added.

    Args:
        digests: by path; of ``digests.json`` alone, it is that file's digests that the others are held against.

    Raises:
        RegistryError: names the first file that differs and both digests.
    """
    found = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    if set(digests) == {DIGESTS_FILE}:
        if DIGESTS_FILE in found and file_sha256(found[DIGESTS_FILE]) == digests[DIGESTS_FILE]:
            digests, source = _read_digests(folder) | dict(digests), f"{DIGESTS_FILE}, which {source} vouches for,"
        else:
            found = {name: path for name, path in found.items() if name == DIGESTS_FILE}
    for name, expected in sorted(digests.items()):
        actual = file_sha256(found[name]) if name in found else "missing"
        if actual != expected:
            raise RegistryError(
                f"{name}: its SHA-256 is {actual}, and {source} states {expected}. The model was altered or damaged "
                "after it was registered: it is not used. Register it again, or take another version."
            )
    for name in sorted(set(found) - set(digests)):
        raise RegistryError(
            f"{name}: its SHA-256 is {file_sha256(found[name])}, and {source} states none: the file was added after "
            "the model was registered. It is not used."
        )


def files_of(folder: Path) -> list[Path]:
    """Every file in a folder and below, sorted.

    Raises:
        RegistryError: a link, which might lead out of the folder.
    """
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_symlink():
            raise RegistryError(f"{path}: is a link, and packages hold none. Put the file itself there.")
        if not path.is_file() and not path.is_dir():
            raise RegistryError(f"{path}: is a pipe or a device, and packages hold none. Remove it.")
    return [path for path in paths if path.is_file()]
