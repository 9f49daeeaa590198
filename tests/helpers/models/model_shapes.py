"""Small real encoders for the model tests: a few thousand parameters, every mechanism of the large ones."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    ParakeetFeatureExtractor,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin

from ccts_dist.config import ModelConfig, SpeechConfig, TextConfig

# The first frame needs 185 samples, and another comes every 160.
SPEECH: dict[str, Any] = {
    "model_type": "hubert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 24],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 4, 8],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
TEXT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VOCABULARY = 50


def speech_config(**changes: Any) -> SpeechConfig:
    """A speech branch from scratch; keys of ``scratch`` go in with ``shape=``."""
    shape = changes.pop("shape", {})
    known = {f.name for f in fields(CONFIG_MAPPING[shape.get("model_type", SPEECH["model_type"])])}
    scratch = {key: value for key, value in SPEECH.items() if key in known or key == "model_type"} | shape
    return replace(SpeechConfig(encoder="scratch", scratch=scratch, gru_hidden=16), **changes)


def text_config(**changes: Any) -> TextConfig:
    """A text branch from scratch; keys of ``scratch`` go in with ``shape=``."""
    shape = changes.pop("shape", {})
    return replace(TextConfig(encoder="scratch", scratch=TEXT | shape, gru_hidden=16, max_tokens=32), **changes)


def both(**changes: Any) -> ModelConfig:
    """Both branches."""
    return replace(ModelConfig(embedding_dim=8, speech=speech_config(), text=text_config()), **changes)


def utterances(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise of those lengths, padded with zeros, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        audio[row, :length] = 0.1 * torch.randn(length, generator=generator)
    return audio, torch.tensor(lengths)


def transcripts(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token numbers of those lengths, padded with 0, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(4, VOCABULARY, (length,), generator=generator)
    return tokens, torch.tensor(lengths)


SPEECH_FAMILIES: dict[str, dict[str, Any]] = {
    "hubert, group norm": {},
    "hubert, layer norm": LAYER_NORM,
    "hubert, batch norm": {"conv_pos_batch_norm": True},
    "wav2vec2": {"model_type": "wav2vec2"},
    "wav2vec2, layer norm": {"model_type": "wav2vec2"} | LAYER_NORM,
    "wavlm": {"model_type": "wavlm"},
    "wavlm, layer norm": {"model_type": "wavlm"} | LAYER_NORM,
    # No weight norm but several positional convolutions in a row.
    "data2vec": {"model_type": "data2vec-audio", "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
    "unispeech": {"model_type": "unispeech"},
    "unispeech-sat": {"model_type": "unispeech-sat"},
    "unispeech-sat, layer norm": {"model_type": "unispeech-sat"} | LAYER_NORM,
    "conformer": {"model_type": "wav2vec2-conformer", "conv_depthwise_kernel_size": 7, "conformer_conv_dropout": 0.0},
    "conformer, rotary": {
        "model_type": "wav2vec2-conformer",
        "conv_depthwise_kernel_size": 7,
        "conformer_conv_dropout": 0.0,
        "position_embeddings_type": "rotary",
    },
    "sew": {"model_type": "sew"},
    "sew-d": {"model_type": "sew-d", "position_buckets": 4, "max_position_embeddings": 16},
    "emotion2vec": {
        "model_type": "emotion2vec",
        "num_conv_pos_embeddings": 3,
        "conv_pos_kernel_size": 5,
        "num_conv_pos_embedding_groups": 4,
        "num_extra_tokens": 3,
    },
    "modified-cpc": {"model_type": "modified-cpc", "conv_dim": [16, 16, 32], "conv_padding": [3, 2, 2]},
}
"""One small encoder for each way in which the real ones of a family differ."""

_NARROW = {"num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
_WITH_DECODER = {"vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
EXTRACTED_FAMILIES: dict[str, tuple[dict[str, Any], FeatureExtractionMixin]] = {
    # Pieces of one second; the published ones have 30.
    "whisper": (
        _WITH_DECODER
        | {
            "model_type": "whisper",
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 50,
        },
        WhisperFeatureExtractor(chunk_length=1),
    ),
    "w2v-bert": (
        _NARROW | {"model_type": "wav2vec2-bert", "conv_depthwise_kernel_size": 7, "conformer_conv_dropout": 0.0},
        SeamlessM4TFeatureExtractor(),
    ),
    # Not known to this library: group norm over all of a waveform, convolutions that see padding.
    "moonshine": (
        _WITH_DECODER
        | {
            "model_type": "moonshine",
            "hidden_size": 32,
            "intermediate_size": 64,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 1,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
        },
        Wav2Vec2FeatureExtractor(do_normalize=False),
    ),
    "parakeet": (
        _NARROW
        | {"model_type": "parakeet_encoder", "subsampling_conv_channels": 16, "conv_kernel_size": 5}
        | dict.fromkeys(["dropout", "activation_dropout", "attention_dropout", "dropout_positions"], 0.0),
        ParakeetFeatureExtractor(),
    ),
}
"""Encoders that read what a feature extractor makes of audio, and that extractor."""

_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "albert": {"model_type": "albert", "embedding_size": 16},
    "deberta-v3": {"model_type": "deberta-v2"} | _DEBERTA,
    "xlm-roberta": {"model_type": "xlm-roberta", "max_position_embeddings": 66},
    "electra": {"model_type": "electra", "embedding_size": 16},
}
"""Likewise, of text encoders."""


SPEECH_MECHANISMS = ("hubert, group norm", "hubert, layer norm", "conformer, rotary", "sew", "modified-cpc")
"""One family of each way to normalize, place, squeeze and carry on; what the fast tier tries."""

TEXT_MECHANISMS = ("bert", "deberta-v3")


def save_speech_encoder(folder: Path, family: str, *, do_normalize: bool = False) -> PreTrainedModel:
    """Write a family's small encoder as transformers would; its weights are random, and large enough to report."""
    encoder = _random_encoder(SPEECH | SPEECH_FAMILIES[family] | {"apply_spec_augment": False})
    encoder.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalize}))
    return encoder


def save_extracted_encoder(folder: Path, family: str, **changes: Any) -> PreTrainedModel:
    """Write the small model of a family that takes input from a feature extractor, and give its encoder."""
    shape, extractor = EXTRACTED_FAMILIES[family]
    return save_extracted(folder, shape | changes, extractor)


def save_extracted(folder: Path, shape: dict[str, Any], extractor: FeatureExtractionMixin) -> PreTrainedModel:
    """Likewise a model of any shape, with any extractor."""
    model = _random_encoder(shape)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model.get_encoder() if model.config.is_encoder_decoder else model


def save_text_encoder(folder: Path, family: str) -> PreTrainedModel:
    """Likewise a text encoder of ``VOCABULARY`` pieces, without a tokenizer."""
    encoder = _random_encoder(TEXT | {"vocab_size": VOCABULARY} | TEXT_FAMILIES[family])
    encoder.save_pretrained(folder)
    return encoder


def most_calls(part: nn.Module, run: Callable[[], object]) -> int:
    """How often ``run`` calls that layer within ``part`` which it calls most often."""
    layers = [module for module in part.modules() if isinstance(module, nn.Linear | nn.LSTM)]
    calls: Counter[nn.Module] = Counter()
    with ExitStack() as hooks:
        for layer in layers:
            if isinstance(layer, nn.LSTM):  # its hooks do not read of recomputing, which begins beneath them
                counted = MagicMock(side_effect=lambda *_, layer=layer: calls.update([layer]))
                hooks.enter_context(patch.object(layer, "check_forward_args", counted))
            else:
                hooks.enter_context(layer.register_forward_pre_hook(lambda module, *_: calls.update([module])))
        run()
    return max(calls.values(), default=0)


def _random_encoder(shape: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {key: value for key, value in shape.items() if key != "model_type"}
    encoder = AutoModel.from_config(CONFIG_MAPPING[shape["model_type"]](**settings)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            # Matrices as drawn (0.02) would hide what a layer does; vectors as drawn, what a norm or a bias does.
            parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder
