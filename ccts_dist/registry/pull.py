"""From a model's name to a folder whose every file is what was registered.

Only the package is fetched, never the code that MLflow keeps next to it, and nothing is opened before its digest has
been compared with the version's tags.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccts_dist.distributed import Ranks, broadcast_object, run_on_all_ranks
from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.files.model_folders import model_folder
from ccts_dist.process.account import user_cache
from ccts_dist.redaction import without_credentials
from ccts_dist.registry.hub import HUB_SCHEME, parse_hub_name, pin_hub_model, pull_hub_model, scratch_in
from ccts_dist.registry.model_uri import (
    DIGEST_TAG,
    PACKAGE,
    RUN_SCHEME,
    SCHEME,
    ModelUri,
    asking_the_server,
    parse_model_uri,
)
from ccts_dist.registry.package import check_digests
from ccts_dist.tracking.mlflow_client import large_transfers, open_client
from ccts_dist.tracking.sqlite_store import is_store
from ccts_dist.tracking.uri import name_another_store, resolve_tracking_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledModel:
    """A model on this machine."""

    folder: Path
    version: str
    """"NAME/3" for a registered model, ``hf://ORG/NAME@COMMIT`` for one of the hub, "" for a folder that the user
    named."""


def resolve_model(model: str, *, tracking_uri: str = "", cache: Path | None = None) -> Path:
    """The folder of a model: ``model`` itself or its ``best/``, else the fetched and checked package of what it names.

    Args:
        model: a model folder, a run folder for its best model, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``,
            ``runs:/RUN_ID`` for what was registered of that run last, or ``hf://ORG/NAME[@REVISION]`` of Hugging
            Face's hub.
        tracking_uri: server; "" for the default.
        cache: where fetched models are kept; None for ``ccts_dist/models`` in the user's cache folder.

    Raises:
        ConfigError: neither a folder nor a well-formed address.
        RegistryError: unknown, not registered by this library, or a file is not what its tag states.
    """
    return pull_model(model, tracking_uri=tracking_uri, cache=cache).folder


def is_address(model: str) -> bool:
    """True for a model of the registry or the hub, which is fetched; False for a folder.

    Raises:
        ConfigError: it begins like an address and is none.
    """
    return parse_hub_name(model) is not None or parse_model_uri(model) is not None


def resolve_version(model: str, *, tracking_uri: str = "") -> str:
    """ "NAME/3" for what ``models:/...`` or ``runs:/...`` means now, ``hf://...@COMMIT`` for a model of the hub; "" for
    a folder.

    An alias may move between two calls: ``pull_model`` gives folder and version that belong together.
    """
    on_hub = parse_hub_name(model)
    if on_hub is not None:
        return str(pin_hub_model(on_hub))
    named = parse_model_uri(model)
    if named is None:
        return ""
    uri = resolve_tracking_uri(tracking_uri)
    with asking_the_server(uri, f"looking up {model}"):
        found = _look_up(_open_store(uri, model), named, model, uri)
    return f"{found.name}/{found.version}"


def pull_model(model: str, *, tracking_uri: str = "", cache: Path | None = None) -> PulledModel:
    """Like ``resolve_model``, together with the version; an alias is looked up once."""
    cache = _default_cache() if cache is None else cache
    on_hub = parse_hub_name(model)
    if on_hub is not None:
        pinned = pin_hub_model(on_hub)
        return PulledModel(folder=pull_hub_model(pinned, cache), version=str(pinned))
    named = parse_model_uri(model)
    if named is None:
        if not Path(model).is_dir():
            raise ConfigError(
                f"model {model!r}: no such folder. Give a run folder, a model folder, {SCHEME}NAME@ALIAS, "
                f"{SCHEME}NAME/VERSION, {RUN_SCHEME}RUN_ID or {HUB_SCHEME}ORG/NAME."
            )
        return PulledModel(folder=model_folder(Path(model)), version="")
    uri = resolve_tracking_uri(tracking_uri)
    with asking_the_server(uri, f"looking up {model}"):
        client = _open_store(uri, model)
        found = _look_up(client, named, model, uri)
    version = f"{found.name}/{found.version}"
    digests = _digests_of(found)
    folder = _fetch(client, found, digests, uri, cache, source=f"the registry's tag of {SCHEME}{version}")
    return PulledModel(folder=folder, version=version)


def pull_model_on_ranks(model: str, ranks: Ranks, *, tracking_uri: str = "", cache: Path | None = None) -> PulledModel:
    """Like ``pull_model``, the same version on every rank, fetched once per machine. Every rank must call it."""

    def pinned() -> str:
        version = resolve_version(model, tracking_uri=tracking_uri) if ranks.is_first else ""
        if not version or version.startswith(HUB_SCHEME):
            return version or model
        return f"{SCHEME}{version}"

    model = broadcast_object(run_on_all_ranks(pinned))

    def pull() -> PulledModel:
        return pull_model(model, tracking_uri=tracking_uri, cache=cache)

    run_on_all_ranks(lambda: pull() if ranks.local_rank == 0 else None)
    return run_on_all_ranks(pull)


def check_registered(package: Path, name: str, version: str, *, tracking_uri: str) -> None:
    """Hold a package that was fetched by other means against the tags of its version.

    Raises:
        RegistryError: the registry cannot be asked, does not know the version, or has other digests.
    """
    model, uri = f"{SCHEME}{name}/{version}", resolve_tracking_uri(tracking_uri)
    with asking_the_server(uri, f"looking up {model}"):
        found = _look_up(_open_store(uri, model), ModelUri(name, version=version), model, uri)
    check_digests(package, _digests_of(found), source=f"the registry's tag of {model}")


def _digests_of(found: "ModelVersion") -> dict[str, str]:
    """SHA-256 of each file by its path in the package, as the version's tags state."""
    digests = {tag.removeprefix(DIGEST_TAG): digest for tag, digest in found.tags.items() if tag.startswith(DIGEST_TAG)}
    if not digests:
        raise RegistryError(
            f"{SCHEME}{found.name}/{found.version} has no {DIGEST_TAG}* tags to check its files against. "
            "Register it with launch/register.py."
        )
    return digests


def _open_store(uri: str, model: str) -> "MlflowClient":
    """A client of a store that is there: MLflow would make an empty one, and take seconds for it."""
    file = sqlite_file(uri)
    if file is not None and not is_store(file):
        raise RegistryError(
            f"{model}: not in the registry at {uri}, a file that is not there or empty. Register a model first, or "
            f"{name_another_store(uri)}."
        )
    return open_client(uri)


def _look_up(client: "MlflowClient", named: ModelUri, model: str, uri: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    if named.run:
        return _newest_of_run(client, named.run, model, uri)
    try:
        if named.alias:
            return client.get_model_version_by_alias(named.name, named.alias)
        return client.get_model_version(named.name, named.version)
    except MlflowException as error:
        # An alias that is unknown is INVALID_PARAMETER_VALUE to MLflow.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RegistryError(
            f"{model}: not in the registry at {without_credentials(uri)}. Check name, version and alias, or "
            f"{name_another_store(uri)}."
        ) from error


def _newest_of_run(client: "MlflowClient", run: str, model: str, uri: str) -> "ModelVersion":
    versions = client.search_model_versions(f"run_id='{run}'")
    if not versions:
        raise RegistryError(
            f"{model}: no model of this run is in the registry at {without_credentials(uri)}. "
            f"Check the id, register one with launch/register.py, or {name_another_store(uri)}."
        )
    return max(versions, key=lambda version: (version.creation_timestamp, int(version.version)))


def _default_cache() -> Path:
    return user_cache() / "ccts_dist" / "models"


def _remove(folder: Path, fault: RegistryError) -> None:
    try:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink()
    except OSError as error:
        raise RegistryError(f"{fault} {folder} cannot be removed ({error.strerror}): remove it.") from error


def _fetch(
    client: "MlflowClient", found: "ModelVersion", digests: dict[str, str], uri: str, cache: Path, *, source: str
) -> Path:
    """The package's folder in the cache, fetched if it is not there yet or no longer sound."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    folder = cache / hashlib.sha256(lines.encode()).hexdigest()
    if os.path.lexists(folder):
        try:
            if folder.is_symlink() or not folder.is_dir():
                raise RegistryError(f"{folder}: is no folder of this cache.")
            check_digests(folder, digests, source=source)
        except RegistryError as error:
            _remove(folder, error)  # damaged in the cache, or planted there: fetched again
        else:
            return folder
    with scratch_in(cache) as scratch:
        with asking_the_server(uri, f"fetching {SCHEME}{found.name}/{found.version}"), large_transfers():
            from mlflow.artifacts import download_artifacts

            place = client.get_model_version_download_uri(found.name, found.version)
            fetched = Path(
                download_artifacts(
                    f"{place}/artifacts/{PACKAGE}", dst_path=str(scratch), tracking_uri=uri, registry_uri=uri
                )
            )
        check_digests(fetched, digests, source=source)
        try:
            fetched.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same files
                raise
    return folder
