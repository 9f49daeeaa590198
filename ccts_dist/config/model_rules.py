"""Rules of the tables under [model] that no single annotation can state."""

from ccts_dist.config.model_schema import (
    ModelConfig,
    SpeechConfig,
    TextConfig,
    layer_number,
    num_poolings,
    num_trainable_layers,
)
from ccts_dist.config.renamed import stored_name
from ccts_dist.errors import ConfigError

EXTRA_SPEECH = stored_name("extra_speech")
"""Module of the further speech branches, in state dicts and names of branches."""

_LEARNT_POOLINGS = ("gru", "attentive-statistics", "self-attention")
"""Those with weights."""


def check_model(model: ModelConfig, source: str) -> None:
    """Refuse a model that makes no sense; ``source`` names the file in errors.

    Raises:
        ConfigError: the key, its value, the rule.
    """
    if model.speech is None and model.text is None:
        raise ConfigError(f"{source}: model has neither [model.speech] nor [model.text]. Give it one or both.")
    if model.extra_speech and model.speech is None:
        raise ConfigError(
            f"{source}: [[model.extra_speech]] stands without [model.speech]: must be next to it. Make its first one "
            "[model.speech]."
        )
    if len(set(model.targets)) != len(model.targets) or not (model.targets or model.categories):
        named = f"model.targets = {list(model.targets)}"
        rule = "must name each target once; it may be empty where model.categories are given"
        raise ConfigError(f"{source}: {named}: {rule}. Change the list.")
    if len(model.categories) == 1 or len(set(model.categories)) != len(model.categories):
        named = f"model.categories = {list(model.categories)}"
        raise ConfigError(f"{source}: {named}: must be two or more, each once, or none. Change the list.")
    unknown = [name for name in model.category_map.values() if name and name not in model.categories]
    if unknown:
        raise ConfigError(
            f"{source}: model.category_map = {dict(model.category_map)}: {unknown[0]!r} must be one of "
            f'model.categories, or "" for none. Change one of them.'
        )
    if model.fusion == "cross-attention" and (model.speech is None or model.text is None or model.extra_speech):
        raise ConfigError(
            f"{source}: model.fusion = 'cross-attention': must stand with [model.speech] and [model.text], and without "
            "[[model.extra_speech]]. Change the branches, or leave it out."
        )
    if model.poolings == "per-target" and num_poolings(model) < 2:
        raise ConfigError(
            f"{source}: model.poolings = 'per-target': must stand with two targets, or with a target and categories. "
            "Leave it out."
        )
    if model.text is not None:
        _check_branch(model.text, f"{source}: model.text", model.poolings)
    for name, branch in speech_tables(model).items():
        _check_branch(branch, f"{source}: {name}", model.poolings)
        _check_filterbank(branch, f"{source}: {name}")


def speech_tables(model: ModelConfig) -> dict[str, SpeechConfig]:
    """The tables of the speech encoders by their names in the run file, in the order of their vectors."""
    tables = {} if model.speech is None else {"model.speech": model.speech}
    return tables | {f"model.extra_speech[{number}]": branch for number, branch in enumerate(model.extra_speech)}


def cached_branches(model: ModelConfig) -> dict[str, SpeechConfig | TextConfig]:
    """The branches whose frames never change: a frozen encoder, and no learnt mixture of its layers; by the names that
    their modules have in the model."""
    branches: dict[str, SpeechConfig | TextConfig] = {}
    if model.speech is not None:
        branches["speech"] = model.speech
    branches |= {f"{EXTRA_SPEECH}.{number}": branch for number, branch in enumerate(model.extra_speech)}
    if model.text is not None:
        branches["text"] = model.text
    return {
        name: branch for name, branch in branches.items() if branch.trainable == "none" and branch.layers != "weighted"
    }


def _check_branch(branch: SpeechConfig | TextConfig, table: str, poolings: str) -> None:
    if poolings == "per-target" and branch.pooling not in _LEARNT_POOLINGS:
        raise ConfigError(
            f"{table}.pooling = {branch.pooling!r} with model.poolings = 'per-target': must be one with weights "
            f"({', '.join(map(repr, _LEARNT_POOLINGS))}), for all others are the same for each target. Change one."
        )
    try:
        num_trainable_layers(branch.trainable)
    except ValueError:
        raise ConfigError(
            f"{table}.trainable = {branch.trainable!r}: must be 'none', 'all', 'top:N' or 'lora:R'. Change it."
        ) from None
    try:
        layer_number(branch.layers)
    except ValueError:
        raise ConfigError(
            f"{table}.layers = {branch.layers!r}: must be 'last', 'layer:N' or 'weighted'. Change it."
        ) from None
    if (branch.encoder == "scratch") != bool(branch.scratch):
        name = table.rpartition(" ")[2]
        raise ConfigError(
            f'{table}.encoder = {branch.encoder!r}: encoder = "scratch" and the table [{name}.scratch] go together. '
            "Give both, or neither."
        )


def _check_filterbank(branch: SpeechConfig, table: str) -> None:
    """A filter bank is trained as a whole: nothing of it is pretrained, and it has no transformer layers."""
    if branch.encoder != "filterbank":
        if branch.filterbank is not None:
            name = table.rpartition(" ")[2]
            raise ConfigError(
                f"{table}.encoder = {branch.encoder!r}: the table [{name}.filterbank] shapes only "
                'encoder = "filterbank". Change the encoder, or leave the table out.'
            )
        return
    for key, value, only in (
        ("trainable", branch.trainable, "all"),
        ("layers", branch.layers, "last"),
        ("train_feature_encoder", branch.train_feature_encoder, False),
    ):
        if value != only:
            raise ConfigError(
                f'{table}.{key} = {value!r}: must be {only!r} with encoder = "filterbank", which has neither '
                "pretrained weights nor transformer layers. Leave it out."
            )
