"""A hub cache on this machine: small random models under the names that run files use."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)
from transformers import Wav2Vec2FeatureExtractor as FeatureExtractor

from tests.helpers.models.small_teacher import WORDS

REVISION = "0123456789abcdef0123456789abcdef01234567"
LETTERS = "abcdefghijklmnopqrstuvwxyz'"

# The convolutions of the real ones (a frame every 20 ms) at a twentieth of their width; twelve layers, so that "top:6"
# means what it states.
SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SPEECH = {
    "facebook/wav2vec2-base-960h": (Wav2Vec2Config, Wav2Vec2Model, BASE),
    "facebook/wav2vec2-large-lv60": (Wav2Vec2Config, Wav2Vec2Model, LARGE),
    "facebook/hubert-base-ls960": (HubertConfig, HubertModel, BASE),
    "facebook/hubert-large-ll60k": (HubertConfig, HubertModel, LARGE),
    "microsoft/wavlm-large": (WavLMConfig, WavLMModel, LARGE | {"hidden_size": 32}),
}


def write_hub(folder: Path) -> Path:
    """Every encoder that a shipped run file names, as ``HF_HUB_CACHE`` holds what was downloaded."""
    for name, (config, model, norm) in SPEECH.items():
        write_speech(_snapshot(folder, name), config, model, norm)
    bert = _snapshot(folder, "google-bert/bert-base-uncased")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    (bert / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    BertTokenizer(str(bert / "vocab.txt")).save_pretrained(bert)
    torch.manual_seed(1)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(set(words)), **shape)).save_pretrained(bert)
    return folder


def write_speech(place: Path, config: type, model: type, norm: dict[str, object]) -> None:
    """A speech model's folder, with what its waves are normalised by."""
    torch.manual_seed(0)
    model(config(**SHAPE | norm)).save_pretrained(place)
    FeatureExtractor(do_normalize=norm["feat_extract_norm"] == "layer").save_pretrained(place)


def _snapshot(folder: Path, name: str) -> Path:
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot
