"""Encoders out of transformers: from a folder, from the hub, or with random weights; speech encoders from end to end.

Build these before any Accelerator: transformers' weight loading fails once DeepSpeed's ZeRO-3 is announced.
"""

import difflib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import logging as transformers_logging

from ccts_dist.config import SpecAugmentConfig, SpeechConfig
from ccts_dist.encoder_settings import check_settings
from ccts_dist.errors import ConfigError
from ccts_dist.model.speech.emotion2vec import MODEL_TYPE as EMOTION2VEC
from ccts_dist.model.speech.modified_cpc import MODEL_TYPE as MODIFIED_CPC
from ccts_dist.model.weight_check import check_loaded, check_not_quantized
from ccts_dist.records import SAMPLE_RATE_HZ

SPEECH_TYPES = (
    "hubert",
    "wav2vec2",
    "wavlm",
    "data2vec-audio",
    "unispeech",
    "unispeech-sat",
    "wav2vec2-conformer",
    "sew",
    "sew-d",
    MODIFIED_CPC,
    EMOTION2VEC,
)
"""Model types, transformers' and two of ours, that convolve the waveform, and whose frames are known here not to depend
on padding."""

BATCHED_TYPES = ("wav2vec2-bert",)
"""Model types with a feature extractor whose real frames are known here not to depend on padding, given a mask."""

Branch = Literal["speech", "text"]

# What transformers raises on a place that holds no usable model: absent, not a model, damaged, of another shape.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    ImportError,  # a library that this model alone needs
    StrictDataclassError,
    SafetensorError,
    pickle.PickleError,
)

# What it raises while it builds a model of a shape that cannot be: each model type checks in its own way, if at all.
SHAPE_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    ArithmeticError,
)

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "squeeze_factor",
)
"""Settings that torch would partly take as 0, and then build a model that is none."""

_DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "dropout")
"""Settings of dropouts inside a speech encoder, by the names that its model types have for them."""


def load_speech_encoder(speech: SpeechConfig) -> PreTrainedModel:
    """The speech encoder that ``[model.speech]`` names, with its weights, in float32.

    LayerDrop is off whatever its configuration states: under ZeRO-3 ranks that drop different layers stall each other.
    SpecAugment is as ``spec_augment`` states; without it, it follows the encoder's configuration, and with "scratch" it
    is off unless ``scratch`` names ``apply_spec_augment``.

    Raises:
        ConfigError: no such place, not a speech encoder of a known kind, or weights that did not arrive.
    """
    if speech.encoder == "scratch":
        config = scratch_config("speech", speech.scratch, {})
        config.apply_spec_augment = bool(speech.scratch.get("apply_spec_augment", False))
    else:
        config = read_config("speech", speech.encoder)
    if reads_features(config):
        _check_extracted(config, speech)
        _drop_and_mask_nothing(config)
    elif speech.spec_augment is not None:
        _mask_as(config, speech.spec_augment)
    if speech.encoder_dropout is not None:
        _drop_out(config, speech.encoder_dropout)
    _check_speech_config(config, speech)
    config.layerdrop = 0.0
    if speech.encoder == "scratch":
        return encoder_from_config("speech", config)
    encoder = _without_decoder(load_weights("speech", speech.encoder, config))
    if reads_features(config):
        _hold_fixed(encoder)
    return encoder


def reads_features(config: PreTrainedConfig) -> bool:
    """True if a speech encoder of this configuration is given what a feature extractor makes of audio."""
    return config.model_type not in SPEECH_TYPES


def read_extractor(place: str | Path) -> FeatureExtractionMixin:
    """The feature extractor in a folder or on the hub, set to pad on the right and to add no noise.

    Raises:
        ConfigError: there is none, or none of audio at 16 kHz.
    """
    try:
        if Path(place).is_dir():
            check_settings(Path(place))
        with quiet_transformers():
            extractor = AutoFeatureExtractor.from_pretrained(
                str(place), local_files_only=Path(place).is_dir(), trust_remote_code=False
            )
    except (*_LOAD_ERRORS, *SHAPE_ERRORS) as error:
        raise ConfigError(
            f"model.speech.encoder = {str(place)!r} has no preprocessor_config.json that transformers can read: only "
            f"encoders of type {', '.join(SPEECH_TYPES)} do without. Save one next to it, or name another."
        ) from error
    rate_hz = getattr(extractor, "sampling_rate", None)
    if rate_hz != SAMPLE_RATE_HZ:
        raise ConfigError(
            f"model.speech.encoder = {str(place)!r} reads audio at {rate_hz} Hz: must be {SAMPLE_RATE_HZ} Hz. "
            "Name another."
        )
    # Real frames are taken from the left, and noise under the audio would differ each time that it is read.
    for name, value in (("padding_side", "right"), ("dither", 0.0)):
        if hasattr(extractor, name):
            setattr(extractor, name, value)
    return extractor


def augments(config: PreTrainedConfig) -> bool:
    """True if a speech encoder of this configuration masks frames or features while it is trained."""
    on = getattr(config, "apply_spec_augment", True)  # data2vec has no such key and reads it as true
    return bool(on) and max(config.mask_time_prob, config.mask_feature_prob) > 0


def _mask_as(config: PreTrainedConfig, masks: SpecAugmentConfig) -> None:
    config.apply_spec_augment = True
    config.mask_time_prob, config.mask_time_length = masks.mask_time_prob, masks.mask_time_length
    config.mask_feature_prob, config.mask_feature_length = masks.mask_feature_prob, masks.mask_feature_length


def _drop_out(config: PreTrainedConfig, share: float) -> None:
    """Raises: ConfigError, for an encoder whose configuration has no dropout that we know."""
    known = [name for name in _DROPOUTS if hasattr(config, name)]
    if not known:
        raise ConfigError(
            f"model.speech.encoder_dropout = {share}: an encoder of type {config.model_type!r} has none of "
            f"{', '.join(_DROPOUTS)} in its configuration. Leave it out."
        )
    for name in known:
        setattr(config, name, share)


def encoder_from_config(branch: Branch, config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder of that shape with random weights, drawn from torch's global generator; without a decoder."""
    try:
        if config.is_encoder_decoder:
            with torch.device("meta"):  # the decoder may be larger than the encoder
                kind = type(_without_decoder(AutoModel.from_config(config, trust_remote_code=False)))
            encoder = kind(config)
        else:
            encoder = AutoModel.from_config(config, trust_remote_code=False)
    except SHAPE_ERRORS as error:
        raise ConfigError(f"model.{branch}: no {config.model_type} can have this shape: {_line(error)}") from error
    return without_pooler(encoder.float())


def _drop_and_mask_nothing(config: PreTrainedConfig) -> None:
    """Neither LayerDrop nor SpecAugment; nor in the configuration of an encoder within that of a larger model."""
    for one in (config, *(getattr(config, name, None) for name in cast(Any, config).sub_configs)):
        if isinstance(one, PreTrainedConfig):
            one.apply_spec_augment = False
            for name in ("layerdrop", "encoder_layerdrop", "mask_time_prob", "mask_feature_prob"):
                setattr(one, name, 0.0)


def _hold_fixed(encoder: PreTrainedModel) -> None:
    """Take from training what transformers does not let learn, such as Whisper's positions: loading forgets it.

    Raises:
        ConfigError: an encoder that cannot be built of its configuration, as it will be when the model is read again.
    """
    with torch.device("meta"):
        built = encoder_from_config("speech", encoder.config)
    for name, parameter in built.named_parameters():
        if not parameter.requires_grad:
            encoder.get_parameter(name).requires_grad_(False)


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_encoder()) if model.config.is_encoder_decoder else model


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """The same encoder less BERT's pooler, whose weights no loss would reach."""
    if getattr(encoder, "pooler", None) is not None:
        del encoder.pooler
        encoder.register_module("pooler", None)
    return encoder


def does_normalize(speech: SpeechConfig) -> bool:
    """True if each utterance is brought to zero mean and unit variance before the encoder.

    Raises:
        ConfigError: "auto", and the encoder does not name how it was pretrained.
    """
    if speech.do_normalize != "auto":
        return speech.do_normalize == "on"
    if speech.encoder in ("scratch", "filterbank"):
        return False
    try:
        extractor, _ = FeatureExtractionMixin.get_feature_extractor_dict(
            speech.encoder, local_files_only=Path(speech.encoder).is_dir()
        )
    except (OSError, *SHAPE_ERRORS) as error:
        raise _unsaid(speech.encoder, "has no readable preprocessor_config.json") from error
    if "do_normalize" not in extractor:
        raise _unsaid(speech.encoder, "has no do_normalize in its preprocessor_config.json")
    return bool(extractor["do_normalize"])


def scratch_config(branch: Branch, scratch: Mapping[str, Any], defaults: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers configuration that a ``scratch`` table describes; unknown keys are refused.

    Args:
        defaults: values for keys the table leaves out, where the model type knows them.
    """
    table = f"model.{branch}.scratch"
    model_type = str(scratch.get("model_type", ""))
    known_types = SPEECH_TYPES if branch == "speech" else tuple(CONFIG_MAPPING.keys())
    if model_type not in known_types:
        near = _nearest(
            model_type, known_types, fallback=f"Write for example {'hubert' if branch == 'speech' else 'bert'!r}."
        )
        raise ConfigError(f"{table}.model_type = {model_type!r}: must be a transformers model type. {near}")
    cls = CONFIG_MAPPING[model_type]
    known = sorted({f.name for f in fields(cls)} | set(cls.attribute_map))
    given = {key: value for key, value in scratch.items() if key != "model_type"}
    for key, value in given.items():
        if key not in known:
            near = _nearest(key, known, fallback=f"See transformers' {cls.__name__}.")
            raise ConfigError(f"{table}: unknown key {key} = {value!r}. {near}")
        numbers = value if isinstance(value, list | tuple) else [value]
        if key in _SIZES and (not numbers or any(isinstance(one, int | float) and not one >= 1 for one in numbers)):
            raise ConfigError(f"{table}.{key} = {value!r}: must be 1 or more, and a list must not be empty. Raise it.")
    try:
        return cls(**{key: value for key, value in defaults.items() if key in known} | given)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConfigError(f"{table}: transformers refuses it: {_line(error)}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers: each rank would print them, and loading is checked here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(branch: Branch, place: str) -> PreTrainedConfig:
    """The transformers configuration in a folder or on the hub.

    Raises:
        ConfigError: no such place, or none that transformers can read.
    """
    folder = Path(place)
    if not folder.is_dir() and (folder.is_absolute() or place.startswith((".", "~")) or place.count("/") > 1):
        raise ConfigError(f"model.{branch}.encoder = {place!r}: no such folder. Name a folder or a model of the hub.")
    try:
        if folder.is_dir():
            check_settings(folder)
        with quiet_transformers():
            return AutoConfig.from_pretrained(place, local_files_only=folder.is_dir(), trust_remote_code=False)
    except (*_LOAD_ERRORS, *SHAPE_ERRORS) as error:
        raise _unloadable(branch, place, error) from error


def load_weights(branch: Branch, place: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model in a folder or on the hub, in float32.

    Raises:
        ConfigError: weights that are not there, or did not arrive.
    """
    check_not_quantized(config, place, branch)
    try:
        with quiet_transformers():
            encoder, info = AutoModel.from_pretrained(
                place,
                config=config,
                dtype=torch.float32,
                local_files_only=Path(place).is_dir(),
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (*_LOAD_ERRORS, *SHAPE_ERRORS) as error:
        raise _unloadable(branch, place, error) from error
    check_loaded(encoder, place, reported_missing=info["missing_keys"])
    return encoder


def _check_extracted(config: PreTrainedConfig, speech: SpeechConfig) -> None:
    """Refuse settings that have no meaning for an encoder that takes input from a feature extractor."""
    read_extractor(speech.encoder)
    for key, value, only in (
        ("do_normalize", speech.do_normalize, "auto"),
        ("train_feature_encoder", speech.train_feature_encoder, False),
        ("spec_augment", speech.spec_augment, None),
    ):
        if value != only:
            raise ConfigError(
                f"model.speech.{key}: has no meaning for a {config.model_type} encoder, which reads what its feature "
                "extractor makes of audio. Leave it out."
            )


def _check_speech_config(config: PreTrainedConfig, speech: SpeechConfig) -> None:
    if getattr(config, "add_adapter", False):
        raise ConfigError(
            f"model.speech.encoder = {speech.encoder!r} has add_adapter = true, whose strided convolutions mix padding "
            "into frames. Name an encoder without an adapter."
        )
    if augments(config) and config.model_type in (MODIFIED_CPC, EMOTION2VEC):
        raise ConfigError(
            f"model.speech.spec_augment: an encoder of type {config.model_type} masks nothing. Leave it out."
        )
    if augments(config) and config.mask_feature_prob > 0 and config.mask_feature_length > config.hidden_size:
        raise ConfigError(
            f"model.speech: mask_feature_length = {config.mask_feature_length} is longer than hidden_size = "
            f"{config.hidden_size}. Shorten it, or mask no features."
        )


def _unloadable(branch: Branch, place: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"model.{branch}.encoder = {place!r}: transformers cannot load it: {_line(error)} "
        "Name a folder or a model of the hub that holds config.json and weights."
    )


def _unsaid(place: str, what: str) -> ConfigError:
    return ConfigError(
        f'model.speech.do_normalize = "auto": {place!r} {what}, so how it was pretrained is unknown. '
        'Set model.speech.do_normalize to "on" or "off".'
    )


def _nearest(word: str, known: tuple[str, ...] | list[str], *, fallback: str) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else fallback


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"it knows no {text}."  # the message of a KeyError is the bare key
    return text if len(text) <= 240 else text[:237] + "..."
