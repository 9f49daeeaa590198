"""Models on Hugging Face's hub: ``hf://ORG/NAME[@REVISION]`` to a folder whose every file is what was pushed.

Only what ``model.json`` names is fetched: no code, no pickle. A branch or tag is resolved to a commit once, and that
commit is fetched. ``model.json`` shows that the files belong together; who wrote them, only the commit's name shows.
"""

import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from ccts_dist.errors import CheckpointError, ConfigError, RegistryError
from ccts_dist.files.atomic import file_sha256
from ccts_dist.model.description import DESCRIPTION, WEIGHTS, model_files, names_its_files, read_description
from ccts_dist.model.folder import weights_digest
from ccts_dist.redaction import redact, shown_cause

HUB_SCHEME = "hf://"

_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Endings of a model's files: settings, weights, and what tokenizers are saved as. None is code or can be a pickle."""


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of the hub as a command line names it."""

    repo: str
    revision: str = ""
    """Branch, tag or commit; "" for the main branch."""

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repo}{f'@{self.revision}' if self.revision else ''}"


def parse_hub_name(model: str) -> HubName | None:
    """The repository in ``hf://ORG/NAME[@REVISION]``; None for no such address.

    Raises:
        ConfigError: it begins like one and is none.
    """
    if not model.startswith(HUB_SCHEME):
        return None
    repo, _, revision = model.removeprefix(HUB_SCHEME).partition("@")
    check_repo(repo, model)
    if model.endswith("@") or re.fullmatch(r"[\w./-]*", revision, re.ASCII) is None or ".." in revision:
        raise ConfigError(f"model {model!r} must be {HUB_SCHEME}ORG/NAME@REVISION: a branch, tag or commit. Name one.")
    return HubName(repo, revision)


def check_repo(repo: str, named: str) -> None:
    """Refuse a name that no repository of the hub can have.

    Args:
        named: the whole of what the user gave.

    Raises:
        ConfigError: it has not the form ORG/NAME.
    """
    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise ConfigError(
        f"{named!r}: the hub's names are ORG/NAME, of letters, digits, '.', '_' and '-'. Give such a one."
    )


def pin_hub_model(named: HubName) -> HubName:
    """The same model at a commit; a branch or tag is looked up, or read from the hub's cache where that is offline.

    Raises:
        RegistryError: no such model or revision, no access, or no model of this library.
    """
    return HubName(named.repo, _fetch(named, [DESCRIPTION]).name)


def pull_hub_model(named: HubName, cache: Path) -> Path:
    """The folder of a model at a commit, fetched if it is not in the cache or no longer whole there.

    Raises:
        RegistryError: as ``pin_hub_model``, or files that are no model's or not as ``model.json`` describes them.
    """
    described = _fetch(named, [DESCRIPTION]) / DESCRIPTION
    if not described.is_file():
        raise RegistryError(f"{named}: has no {DESCRIPTION}, so it was not put there by launch/push.py. Name another.")
    names = _names_of(described.parent, named)
    cached = cache / f"hub-{file_sha256(described)}"
    if cached.is_dir() and not cached.is_symlink():
        try:
            _check(cached, named)
        except RegistryError:
            shutil.rmtree(cached)  # damaged in the cache: taken from the hub's again
        else:
            return cached
    snapshot = _fetch(named, [glob.escape(name) for name in names])
    with scratch_in(cache) as scratch:
        fetched = scratch / "model"
        for name in names:
            if not (snapshot / name).is_file():
                raise RegistryError(f"{named}: lacks {name}, which its {DESCRIPTION} names. Push the model again.")
            (fetched / name).parent.mkdir(parents=True, exist_ok=True)
            _take(snapshot / name, fetched / name)
        _check(fetched, named)
        try:
            fetched.rename(cached)
        except OSError:
            if not cached.is_dir():  # else another process was faster, with the same files
                raise
    return cached


@contextmanager
def scratch_in(cache: Path) -> Iterator[Path]:
    """A new folder in the cache of models, in which one is fetched before it gets its place; gone at the end.

    Raises:
        RegistryError: the cache cannot be written to.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RegistryError(
            f"{cache}: fetched models cannot be cached there ({error.strerror}). Set XDG_CACHE_HOME to a folder that "
            "can be written to."
        ) from error
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        yield Path(scratch)


@contextmanager
def asking_the_hub(doing: str) -> Iterator[None]:
    """Turn what the hub's library and the network raise into one line.

    Raises:
        RegistryError: anything but success.
    """
    # Of httpx, or of requests in earlier versions: what the hub's own error is a case of.
    transport: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    try:
        yield
    except (transport, HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        words = f"{doing} failed: {_reason(error)}"
        raise RegistryError(words) from shown_cause(error)


def _reason(error: Exception) -> str:
    """Why the hub's library failed, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        if isinstance(error, GatedRepoError):
            return "access to it must be asked for on its page, with a token (hf auth login, or HF_TOKEN)."
        if isinstance(error, RepositoryNotFoundError):
            return "no such repository, or none that this token may see (hf auth login, or HF_TOKEN)."
        return "no token, or one that may not do so. Run hf auth login, or set HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository. Check its name, and the token if it is private."
    if isinstance(error, RevisionNotFoundError):
        return "no such branch, tag or commit. Check the revision."
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            "it is not in the hub's cache, and the hub is offline (HF_HUB_OFFLINE) or does not answer. Go online once."
        )
    return f"{' '.join(redact(str(error)).split())[:300] or type(error).__name__} Try again later."


def _fetch(named: HubName, patterns: list[str]) -> Path:
    with asking_the_hub(f"fetching {named}"), _bars_on_terminals_only():
        return Path(snapshot_download(named.repo, revision=named.revision or None, allow_patterns=patterns))


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """The hub's progress bars would stand in logs, and once per rank."""
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _names_of(folder: Path, named: HubName) -> list[str]:
    """Files that ``model.json`` names.

    Raises:
        RegistryError: one that is no part of a model, or none at all.
    """
    try:
        names = [name for name in model_files(folder) if name != DESCRIPTION] if names_its_files(folder) else []
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RegistryError(f"{named}: its {DESCRIPTION} cannot be read: {error}. Push the model again.") from error
    if WEIGHTS not in names or not all(isinstance(name, str) for name in names):
        raise RegistryError(f"{named}: its {DESCRIPTION} names no {WEIGHTS}. Push the model again.")
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable() or "\\" in name:
            raise RegistryError(f"{named}: its {DESCRIPTION} names {name!r}, a path outside the model. It is not used.")
        if path.suffix not in _SUFFIXES:
            raise RegistryError(
                f"{named}: its {DESCRIPTION} names {name!r}, which may be code or a pickle: of a model's files only "
                f"{', '.join(sorted(_SUFFIXES))} are fetched. It is not used."
            )
    return [*names, DESCRIPTION]


def _take(source: Path, target: Path) -> None:
    """Put a file of the hub's cache, where it is a link, at ``target``: the same bytes on the disk if that can be."""
    whole = source.resolve()
    try:
        os.link(whole, target)
    except OSError:
        shutil.copyfile(whole, target)


def _check(folder: Path, named: HubName) -> None:
    """Hold every file against ``model.json``, whose own bytes are sealed."""
    try:
        found, description = weights_digest(folder), read_description(folder)
    except CheckpointError as error:
        raise RegistryError(f"{named}: {error}") from error
    if found != description.sha256:
        raise RegistryError(
            f"{named}: {WEIGHTS} has SHA-256 {found}, and {DESCRIPTION} has {description.sha256}: the model was "
            "altered or damaged. It is not used."
        )
