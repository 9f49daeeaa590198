"""A model as a folder that needs nothing else: no hub, no encoder folders, no unpickling.

    model.safetensors            weights
    speech_encoder/config.json   the encoders' shapes, as transformers spells them; none for a filter bank; next to it
                                 preprocessor_config.json for encoders that take input from a feature extractor
    NAME_encoder_0/config.json   of further speech encoders; NAME as their module is stored
    text_encoder/config.json
    tokenizer/                   with a text branch
    model.json                   what the model is, every file's digest, and where it comes from; sealed, written last

A folder without ``model.json`` is not complete.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.feature_extraction_utils import FeatureExtractionMixin

from ccts_dist.config import ModelConfig, SpeechConfig, parse_model, run_to_tree
from ccts_dist.config.model_rules import EXTRA_SPEECH
from ccts_dist.encoder_settings import check_settings
from ccts_dist.errors import CheckpointError, ConfigError
from ccts_dist.limits import open_regular
from ccts_dist.model.description import (
    DESCRIPTION,
    EXTRA_NORMALIZE,
    NORMALIZE,
    WEIGHTS,
    Description,
    description_bytes,
    files_digests,
    read_description,
)
from ccts_dist.model.emotion import EmotionModel, EncoderConfigs, rebuild_model
from ccts_dist.model.encoders import SHAPE_ERRORS, read_extractor, reads_features
from ccts_dist.model.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model out of its folder, in evaluation mode, and all that is known of it."""

    model: EmotionModel
    config: ModelConfig
    tokenizer: Tokenizer | None
    """None without a text branch."""

    scale: tuple[float, float]
    """The corpus's rating scale: ``rating = low + prediction * (high - low)``."""

    digest: str
    """SHA-256 of the weights' file."""

    extra: Mapping[str, Any]
    """Notes of the program that saved it: training splits, shard set, seed, scores."""


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    encoders: EncoderConfigs,
    tokenizer: Tokenizer | None = None,
    scale: tuple[float, float],
    extra: Mapping[str, Any],
) -> str:
    """Write a model folder and return its weights' digest; one that is there already is replaced as a whole.

    Everything is written and synced beside ``folder`` first, so that a writer that is killed leaves no folder or a
    whole one. One writer per folder.

    Args:
        state: an ``EmotionModel``'s state dict.
        encoders: ``model.encoder_configs``.
        extra: any JSON.

    Raises:
        CheckpointError: ``extra`` is not JSON, or a text branch comes without its tokenizer.
        OSError: the folder cannot be written (or ``SafetensorError``, for the weights); what was there before stays.
    """
    if (tokenizer is None) != (config.text is None):
        raise CheckpointError(
            f"{folder}: a text branch and a tokenizer go together. Save the model with both or neither."
        )
    folder = Path(folder)
    _refuse_unless_json(extra, folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    replaced = folder.with_name(f".{folder.name}.replaced")
    for left_behind in (unfinished, replaced):
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, unfinished / WEIGHTS)
        _save_settings(unfinished, encoders)
        if tokenizer is not None:
            tokenizer.save(unfinished / "tokenizer")
        digest = weights_digest(unfinished)
        description = {
            "model": run_to_tree(config),
            "targets": list(config.targets),
            "scale": list(scale),
            NORMALIZE: encoders.do_normalize,
            EXTRA_NORMALIZE: list(encoders.extra_do_normalize),
            "sha256": digest,
            "files": files_digests(unfinished, weights=digest),
            "extra": dict(extra),
        }
        _sync(*unfinished.rglob("*"), unfinished)
        (unfinished / DESCRIPTION).write_bytes(description_bytes(description))
        shutil.copymode(unfinished / DESCRIPTION, unfinished / WEIGHTS)  # safetensors' own is 0600, whatever the umask
        _sync(unfinished / DESCRIPTION, unfinished)
    except (OSError, SafetensorError):
        shutil.rmtree(unfinished, ignore_errors=True)  # makes room, where room was what it wanted
        raise
    _put_in_place(unfinished, folder, replaced)
    return digest


def _put_in_place(unfinished: Path, folder: Path, replaced: Path) -> None:
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _save_settings(folder: Path, encoders: EncoderConfigs) -> None:
    """Configurations and feature extractors of the encoders, each in a folder of its own."""
    extra = zip(encoders.extra_speech, encoders.extra_extractors, strict=True)
    settings = {"speech_encoder": (encoders.speech, encoders.extractor), "text_encoder": (encoders.text,)}
    for name, parts in (settings | {_extra_encoder(number): both for number, both in enumerate(extra)}).items():
        for part in parts:
            if part is not None:
                part.save_pretrained(folder / name)


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model in ``folder``, on ``device``, in evaluation mode.

    Raises:
        ConfigError: no such folder.
        CheckpointError: not a whole model folder, of another format version, or altered since it was saved.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such model folder. Name the folder that training wrote.")
    description = read_description(folder)
    digest = weights_digest(folder)
    if digest != description.sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS}: SHA-256 is {digest}, {DESCRIPTION} states {description.sha256}: the weights are not "
            "those that were saved. Fetch or save the model again."
        )
    config = parse_model(description.model, source=str(folder / DESCRIPTION))
    encoders = _read_encoders(folder, config, description)
    try:
        _check_shapes(folder / WEIGHTS, config, encoders)
        model = rebuild_model(config, encoders)
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except (*SHAPE_ERRORS, SafetensorError) as error:
        reason = " ".join(str(error).split())[:240]
        raise CheckpointError(
            f"{folder / WEIGHTS}: not the weights of the model that {DESCRIPTION} describes: {reason} Save it again."
        ) from error
    tokenizer = None
    if config.text is not None:
        tokenizer = load_tokenizer(folder / "tokenizer", max_tokens=config.text.max_tokens)
    return LoadedModel(
        model=model.to(device).eval(),
        config=config,
        tokenizer=tokenizer,
        scale=description.scale,
        digest=digest,
        extra=description.extra,
    )


def weights_digest(folder: str | Path) -> str:
    """SHA-256 of the weights' file, in hexadecimal.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(folder) / WEIGHTS
    try:
        with open(open_regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot read the weights ({error.strerror}). Fetch or save the model again."
        ) from error


def _check_shapes(weights: Path, config: ModelConfig, encoders: EncoderConfigs) -> None:
    """Refuse settings that ask for another model than the weights are of, before room is made for one of any size.

    Raises:
        RuntimeError: names the first tensor that differs.
        SafetensorError: the weights' file is damaged.
    """
    with safe_open(weights, framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a size of 0, which the comparison finds
        wanted = {name: tuple(one.shape) for name, one in rebuild_model(config, encoders).state_dict().items()}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            there, here = (
                "no " + name if one is None else f"{name} {list(one)}" for one in (stored.get(name), wanted.get(name))
            )
            raise RuntimeError(f"the file has {there}, the model has {here}.")


def _read_encoders(folder: Path, config: ModelConfig, description: Description) -> EncoderConfigs:
    places = [
        folder / "speech_encoder",
        *(folder / _extra_encoder(number) for number in range(len(config.extra_speech))),
    ]
    shapes = [_read_speech_config(*pair) for pair in zip((config.speech, *config.extra_speech), places, strict=True)]
    extractors = [_read_extractor(*pair) for pair in zip(shapes, places, strict=True)]
    return EncoderConfigs(
        speech=shapes[0],
        text=None if config.text is None else _read_encoder_config(folder / "text_encoder"),
        do_normalize=description.do_normalize,
        extra_speech=tuple(shapes[1:]),
        extra_do_normalize=description.extra_do_normalize,
        extractor=extractors[0],
        extra_extractors=tuple(extractors[1:]),
    )


def _extra_encoder(number: int) -> str:
    return f"{EXTRA_SPEECH}_encoder_{number}"


def _read_speech_config(branch: SpeechConfig | None, folder: Path) -> PreTrainedConfig | None:
    return None if branch is None or branch.encoder == "filterbank" else _read_encoder_config(folder)


def _read_encoder_config(folder: Path) -> PreTrainedConfig:
    try:
        check_settings(folder)
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, StrictDataclassError, *SHAPE_ERRORS) as error:
        reason = " ".join(str(error).split())[:240]
        raise CheckpointError(f"{folder}: no encoder configuration: {reason} Fetch or save the model again.") from error


def _read_extractor(encoder: PreTrainedConfig | None, folder: Path) -> FeatureExtractionMixin | None:
    if encoder is None or not reads_features(encoder):
        return None
    try:
        return read_extractor(folder)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: no feature extractor. Fetch or save the model again. ({error})") from error


def _refuse_unless_json(extra: Mapping[str, Any], folder: Path) -> None:
    try:
        json.dumps(dict(extra), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: extra cannot be written as JSON: {error}. Change or leave it out.") from error


def _sync(*paths: Path) -> None:
    """Push files and folders to the disk, so that a rename cannot outlive what it names."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
