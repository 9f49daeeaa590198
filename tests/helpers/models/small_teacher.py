"""A real shard set of noise and words, and a real speech + text teacher of a few thousand parameters, in seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ccts_dist.config import ModelConfig
from ccts_dist.model import build_model, save_model, train_tokenizer
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from tests.helpers.models.model_shapes import both, speech_config

WORDS = ("good", "bad", "loud", "soft", "rain", "and", "sun", "never")


def build_small_shards(
    folder: Path, splits: Mapping[str, int], *, shard_bytes: int = 40_000, seed: int = 0, num_raters: int = 0
) -> ShardSet:
    """A shard set with so many utterances per split, of 0.1 to 0.4 s; every seventh has no valence.

    Test3 has no labels. With ``num_raters`` their variances are in the shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    utterances = []
    for split, count in splits.items():
        for number in range(count):
            audio = folder / f"{split}-{number}.wav"
            samples = 1_600 + int(generator.integers(0, 4_800))
            soundfile.write(audio, generator.normal(0, 3_000, samples).astype(np.int16), 16_000, subtype="PCM_16")
            labels = {name: float(generator.random()) for name in DIMENSIONS}
            if number % 7 == 3:
                del labels["valence"]
            if split == "Test3":
                labels.clear()
            varied = labels if num_raters else {}
            utterances.append(
                Utterance(
                    key=f"{split}.{number}",
                    audio=audio,
                    split=split,
                    labels=labels,
                    scale=(1.0, 7.0),
                    transcript=" ".join(generator.choice(WORDS, size=int(generator.integers(0, 6)))),
                    label_variance=dict.fromkeys(varied, 0.01 * (1 + number % 3)),
                    num_raters=num_raters or None,
                )
            )
    out = folder / "shards"
    build_shard_set(
        utterances,
        out,
        corpus="noise",
        release="1",
        scale=(1.0, 7.0),
        targets=DIMENSIONS,
        root=folder,
        shard_bytes=shard_bytes,
    )
    return open_shard_set(out)


def save_small_teacher(
    folder: Path, *, seed: int = 0, with_text: bool = True, with_speech: bool = True,
    weights: Mapping[str, float] | None = None, words: Sequence[str] = WORDS,
    changes: Mapping[str, Any] | None = None, **extra: Any,
) -> Path:  # fmt: skip
    """An untrained teacher's model folder; its train_splits are ``("Train",)`` unless ``extra`` states otherwise.

    Args:
        weights: parameters by name, to be filled with one number.
        words: that the tokenizer knows.
        changes: settings of the model that differ.
    """
    config = both() if with_text else ModelConfig(embedding_dim=8, speech=speech_config())
    if not with_speech:
        config = replace(config, speech=None)
    config = replace(config, **(changes or {}))
    tokenizer = None
    if config.text is not None:
        tokenizer = train_tokenizer([" ".join(words)] * 20, config.text, folder.with_name(f"{folder.name}-tokenizer"))
    torch.manual_seed(seed)
    model = build_model(config, vocabulary_size=None if tokenizer is None else tokenizer.vocabulary_size)
    with torch.no_grad():
        for name, value in (weights or {}).items():
            model.get_parameter(name).fill_(value)
    save_model(
        folder,
        model.state_dict(),
        config,
        encoders=model.encoder_configs,
        tokenizer=tokenizer,
        scale=(1.0, 7.0),
        extra={"train_splits": ["Train"]} | extra,
    )
    return folder


def cache_bytes(root: Path) -> dict[str, bytes]:
    """Everything that a cache's user reads, by file name."""
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if not path.name.startswith(".")}
