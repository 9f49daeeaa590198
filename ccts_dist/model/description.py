"""``model.json``: what a model folder states of itself, read as something that anybody may have written.

It names every other file of the folder by SHA-256 and has a seal of its own bytes. Folders of earlier versions have
neither list nor seal, and a digest of their weights alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccts_dist.config.renamed import stored_name
from ccts_dist.errors import CheckpointError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.files.digests import is_digest
from ccts_dist.limits import open_regular, parse_json, read_limited
from ccts_dist.shards.format.sealed_json import check_seal, sealed_bytes

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"

NORMALIZE, EXTRA_NORMALIZE = stored_name("do_normalize"), stored_name("extra_do_normalize")
_KEYS = ("model", "scale", NORMALIZE, "sha256", "extra")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The contents of ``model.json``."""

    model: Mapping[str, Any]
    scale: tuple[float, float]
    do_normalize: bool
    extra_do_normalize: tuple[bool, ...]
    sha256: str
    """Digest of the weights' file."""

    extra: Mapping[str, Any]


def files_digests(folder: Path, *, weights: str) -> dict[str, str]:
    """SHA-256 of every file of a model folder that has no description yet, by path.

    Args:
        weights: of the weights' file, which may be large: it is not read again.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: weights if name == WEIGHTS else file_sha256(path) for name, path in paths.items()}


def model_files(folder: Path) -> list[str]:
    """Paths of all files that belong to a model within its folder, which has been loaded; others may lie beside them.

    Raises:
        OSError, ValueError: the description cannot be read.
    """
    files = parse_json(read_limited(folder / DESCRIPTION, DESCRIPTION)).get("files")
    if files is None:  # of an earlier version
        below = (path for path in folder.glob("*/**/*") if path.is_file())
        files = [WEIGHTS, *(path.relative_to(folder).as_posix() for path in below)]
    return sorted([*files, DESCRIPTION])


def names_its_files(folder: Path) -> bool:
    """False for a model of an earlier version, whose description has a digest of the weights alone.

    Raises:
        OSError, ValueError: the description cannot be read.
    """
    return isinstance(parse_json(read_limited(folder / DESCRIPTION, DESCRIPTION)).get("files"), dict)


def description_bytes(tree: Mapping[str, Any]) -> bytes:
    """The file of a description, sealed."""
    return sealed_bytes({"format_version": FORMAT_VERSION, **tree})


def read_description(folder: Path) -> Description:
    """The description of a model folder.

    Raises:
        CheckpointError: none, of another format version, of another form, or changed since it was written.
    """
    path = folder / DESCRIPTION
    try:
        data = read_limited(path, DESCRIPTION)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: has no readable {DESCRIPTION} ({error.strerror}), so it is no complete model folder. "
            "Name another, or save it again."
        ) from error
    try:
        tree = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}. Fetch or save the model again.") from error
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"{path}: format version is {_short(version)}, this library reads {FORMAT_VERSION}. "
            "Use the version that wrote it."
        )
    missing = sorted(set(_KEYS) - set(tree))
    if missing:
        raise CheckpointError(f"{path}: lacks {missing[0]!r}. Fetch or save the model again.")
    if "seal" in tree:
        check_seal(data, where=str(path), error=CheckpointError)
    description = _from_tree(tree, path)
    _check_files(folder, tree.get("files"), path)
    return description


def _from_tree(tree: Mapping[str, Any], path: Path) -> Description:
    scale, do_normalize = tree["scale"], tree[NORMALIZE]
    extra = tree.get(EXTRA_NORMALIZE, [])
    if not _is_scale(scale):
        raise _misfit(path, "scale", scale, "a lower and an upper end, two finite numbers")
    if not isinstance(do_normalize, bool):
        raise _misfit(path, NORMALIZE, do_normalize, "true or false")
    if not isinstance(extra, list) or not all(isinstance(one, bool) for one in extra):
        raise _misfit(path, EXTRA_NORMALIZE, extra, "a list of true and false")
    if not isinstance(tree["sha256"], str) or not is_digest(tree["sha256"]):
        raise _misfit(path, "sha256", tree["sha256"], "a SHA-256 in hexadecimal digits")
    for key in ("model", "extra"):
        if not isinstance(tree[key], dict):
            raise _misfit(path, key, tree[key], "an object")
    return Description(
        model=tree["model"],
        scale=(float(scale[0]), float(scale[1])),
        do_normalize=do_normalize,
        extra_do_normalize=tuple(extra),
        sha256=tree["sha256"],
        extra=tree["extra"],
    )


def _is_scale(scale: Any) -> bool:
    if not isinstance(scale, list) or len(scale) != 2:
        return False
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in scale)
    return numbers and all(map(math.isfinite, scale)) and scale[0] < scale[1]


def _check_files(folder: Path, files: Any, path: Path) -> None:
    """Hold the files of a folder against the list of its description; beside them there may be others of a package.

    The weights are left to the caller, which reads them once. What lies in a folder below is read by name, so that one
    more file there could change what is built.
    """
    if files is None:  # of an earlier version
        return
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and is_digest(digest) for digest in files.values()
    ):
        raise _misfit(path, "files", files, "an object of a SHA-256 by path")
    for name, digest in files.items():
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\0" in name or not name.isprintable():
            raise _misfit(path, "files", name, "paths within the folder")
        if name == WEIGHTS:
            continue
        try:
            with open(open_regular(folder / name), "rb"):
                found = file_sha256(folder / name)
        except OSError as error:
            raise CheckpointError(
                f"{folder / name}: cannot be read ({error.strerror}), and {DESCRIPTION} names it. Fetch or save the "
                "model again."
            ) from error
        if found != digest:
            raise CheckpointError(
                f"{folder / name}: SHA-256 is {found}, {DESCRIPTION} states {digest}: the file is not the one that was "
                "saved. Fetch or save the model again."
            )
    for found_path in sorted(folder.glob("*/**/*")):
        name = found_path.relative_to(folder).as_posix()
        if name not in files and not found_path.is_dir():
            raise CheckpointError(
                f"{found_path}: was added after the model was saved: {DESCRIPTION} does not name it. Remove it, or "
                "fetch or save the model again."
            )


def _misfit(path: Path, key: str, value: Any, rule: str) -> CheckpointError:
    return CheckpointError(f"{path}: {key} = {_short(value)}: must be {rule}. Fetch or save the model again.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
