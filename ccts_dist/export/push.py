"""A model put on Hugging Face's hub: one folder for this library and for transformers."""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.export.card import CardSettings
from ccts_dist.export.command import export_model
from ccts_dist.model import load_model
from ccts_dist.model.description import DESCRIPTION, model_files, names_its_files
from ccts_dist.registry.hub import HUB_SCHEME, HubName, asking_the_hub, check_repo
from ccts_dist.registry.lineage import lineage_of
from ccts_dist.registry.model_card import card_of
from ccts_dist.registry.publish import find_checkpoint
from ccts_dist.registry.pull import resolve_model

_STALE = ("speech_encoder/*", "also_encoder_*/*", "text_encoder/*", "tokenizer/*")
"""Files of an earlier model: what lies in a model's sub-folders must be its own."""

_USAGE = """\
## How to use it

With ccts-dist: `--model {model}`, wherever it takes a model. transformers alone does not open it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Result of a push."""

    url: str
    """Address of the commit."""

    model: HubName
    """Name for this library, at that commit."""

    not_for_transformers: str = ""
    """Why; "" for a model that transformers opens."""


def push_model(
    model: str,
    repo: str,
    *,
    private: bool = False,
    revision: str = "",
    license: str = "",
    language: tuple[str, ...] = (),
    tracking_uri: str = "",
) -> Pushed:
    """Write a model's folder for the hub and upload it as one commit.

    Args:
        model: a model folder, a run folder, or an address of a model.
        repo: ORG/NAME; created if it is new.
        private: only members may see it.
        revision: a branch, created if it is new; "" for the main one.
        license: identifier that the hub knows; "" where the corpus and the encoder decide.
        language: codes such as "en".
        tracking_uri: server of registered models; "" for the default.

    Raises:
        ConfigError: no such model, or a name, branch or language that cannot be.
        ExportError: transformers does not predict what the model does.
        RegistryError: the hub failed or refused; a private model would be public.
    """
    check_repo(repo, repo)
    if revision and (re.fullmatch(r"[\w./-]+", revision, re.ASCII) is None or ".." in revision):
        raise ConfigError(f"--revision {revision!r}: must be a branch: letters, digits, '.', '_', '-', '/'. Change it.")
    for code in language:
        if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", code) is None:
            raise ConfigError(f"--language {code!r}: must be a code such as en or pt-BR. Change it.")
    source = find_checkpoint(resolve_model(model, tracking_uri=tracking_uri)).model
    load_model(source)  # a model that cannot be loaded is not pushed
    if not names_its_files(source):
        raise ConfigError(
            f"{source}: was saved by an earlier version, whose {DESCRIPTION} names no files: nobody "
            "could check what is fetched. Train or save it with this version."
        )
    card = CardSettings(name=repo.rpartition("/")[2], place=repo, license=license, language=language)
    with tempfile.TemporaryDirectory(prefix="ccts-push-") as scratch:
        folder = Path(scratch) / "model"
        reason = _write(source, folder, card)
        with asking_the_hub(f"pushing to {repo}"):
            hub = HfApi()
            hub.create_repo(repo, private=private or None, exist_ok=True)
            is_public = private and not hub.model_info(repo).private
        if is_public:
            raise RegistryError(f"{repo}: is there already, and public. Make it private, or leave --private out.")
        with asking_the_hub(f"pushing to {repo}"):
            if revision:
                hub.create_branch(repo, branch=revision, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision or None,
                commit_message=f"Upload {card.name} by ccts-dist",
                delete_patterns=list(_STALE),
            )
    return Pushed(url=commit.commit_url, model=HubName(repo, commit.oid), not_for_transformers=reason)


def _write(source: Path, folder: Path, card: CardSettings) -> str:
    """Fill the folder; why transformers cannot open it, "" if it can."""
    try:
        export_model(str(source), "transformers", folder, card=card)
    except ConfigError as error:
        loaded = load_model(source)
        for name in model_files(source):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        text = card_of(
            loaded,
            name=card.name,
            lineage=lineage_of(loaded, "", str(loaded.extra.get("run", "")), {}),
            metrics=find_checkpoint(source).metrics,
            usage=_USAGE.format(model=f"{HUB_SCHEME}{card.place}"),
            license=card.license,
            language=card.language,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        return str(error)
    return ""
