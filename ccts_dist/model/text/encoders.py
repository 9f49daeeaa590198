"""Text encoders out of transformers, beside what ``encoders`` has for both kinds."""

from torch import nn
from transformers import PreTrainedModel

from ccts_dist.config import TextConfig
from ccts_dist.errors import ConfigError
from ccts_dist.model.encoders import (
    encoder_from_config,
    load_weights,
    read_config,
    scratch_config,
    without_pooler,
)


def load_text_encoder(text: TextConfig, vocabulary_size: int | None) -> PreTrainedModel:
    """The text encoder that ``[model.text]`` names, with its weights, in float32, without a pooler.

    Args:
        vocabulary_size: pieces of the tokenizer; needed for "scratch", else checked if given.

    Raises:
        ConfigError: no such place, not an encoder, weights that did not arrive, or too small for the tokenizer.
    """
    if text.encoder == "scratch":
        if "vocab_size" in text.scratch:
            raise ConfigError(
                f"model.text.scratch.vocab_size = {text.scratch['vocab_size']}: the tokenizer decides it. "
                "Remove it and set model.text.vocab_size."
            )
        if vocabulary_size is None:
            raise ConfigError(
                'model.text.encoder = "scratch" needs a trained tokenizer. Train one, or name an encoder.'
            )
        config = scratch_config("text", text.scratch, {"vocab_size": vocabulary_size})
    else:
        config = read_config("text", text.encoder)
    if config.is_encoder_decoder:
        raise ConfigError(
            f"model.text.encoder = {text.encoder!r} is a {config.model_type} model with a decoder: must be an "
            "encoder such as BERT. Name another."
        )
    if text.encoder == "scratch":
        encoder = encoder_from_config("text", config)
    else:
        encoder = without_pooler(load_weights("text", text.encoder, config))
    _check_text_encoder(encoder, text, vocabulary_size)
    return encoder


def _check_text_encoder(encoder: PreTrainedModel, text: TextConfig, vocabulary_size: int | None) -> None:
    try:
        pieces = encoder.get_input_embeddings()
    except NotImplementedError:
        pieces = None
    if not isinstance(pieces, nn.Embedding):
        raise ConfigError(
            f"model.text.encoder = {text.encoder!r} is a {encoder.config.model_type} model, which does not read text "
            "alone: must be an encoder such as BERT. Name another."
        )
    rows = pieces.num_embeddings
    if vocabulary_size is not None and vocabulary_size > rows:
        raise ConfigError(
            f"model.text.encoder = {text.encoder!r} knows {rows} pieces, the tokenizer has {vocabulary_size}. "
            "Use the tokenizer that belongs to the encoder."
        )
    places = getattr(encoder.config, "max_position_embeddings", None)
    embeddings = getattr(encoder, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if places is not None and padding is not None:
        places -= padding + 1  # RoBERTa's positions begin after its padding number
    if places is not None and 0 < places < text.max_tokens:
        raise ConfigError(
            f"model.text.max_tokens = {text.max_tokens}: encoder {text.encoder!r} reads at most {places}. Lower it."
        )
