"""A HuBERT-large with random weights as a folder of the hub would lie on disk, and utterances to train it on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel

from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import ShardSet, open_shard_set

SAMPLE_RATE_HZ = 16_000

# What config.json of facebook/hubert-large-ll60k states, where transformers' own defaults differ.
LARGE: dict[str, Any] = {
    "activation_dropout": 0.0,
    "attention_dropout": 0.1,
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "feat_proj_dropout": 0.1,
    "final_dropout": 0.0,
    "hidden_dropout": 0.1,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layerdrop": 0.1,
    "mask_feature_prob": 0.0,
    "mask_time_length": 10,
    "mask_time_prob": 0.05,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
PREPROCESSOR = {
    "do_normalize": True,
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0,
    "return_attention_mask": True,
    "sampling_rate": SAMPLE_RATE_HZ,
}


def save_large_student(folder: Path, **changes: Any) -> Path:
    """HuBERT-large as its folder on the hub: weight norm in the old spelling, and how it wants its input."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    config = HubertConfig(**LARGE | changes)
    model = HubertModel(config)
    tensors = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["HubertModel"]
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def build_seconds(folder: Path, *, num_train: int, num_valid: int, shortest_s: float, longest_s: float) -> ShardSet:
    """Utterances of noise whose loudness goes with their labels; splits Train and Development."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(8)
    utterances = []
    for split, count in (("Train", num_train), ("Development", num_valid)):
        for number in range(count):
            seconds = shortest_s + (longest_s - shortest_s) * number / max(1, count - 1)
            loudness = float(generator.uniform(0.1, 0.9))
            audio = folder / f"{split}-{number}.wav"
            wave = generator.normal(0, 8_000 * loudness, int(seconds * SAMPLE_RATE_HZ))
            soundfile.write(audio, wave.clip(-32_000, 32_000).astype(np.int16), SAMPLE_RATE_HZ, subtype="PCM_16")
            utterances.append(
                Utterance(
                    key=f"{split}_{number}",
                    audio=audio,
                    split=split,
                    labels=dict.fromkeys(DIMENSIONS, loudness),
                    scale=(1.0, 7.0),
                    transcript="noise",
                )
            )
    build_shard_set(
        utterances, folder / "shards", corpus="seconds of noise", release="1", scale=(1.0, 7.0), targets=DIMENSIONS,
        root=folder,
    )  # fmt: skip
    return open_shard_set(folder / "shards")
