"""Run files for real trainings that take seconds, on a corpus whose long utterances no teacher agrees with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tomli_w
import torch

from ccts_dist.distributed import Ranks
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from ccts_dist.teacher import cache_teacher
from tests.helpers.models.small_teacher import WORDS

SHORT, LONG = 1_600, 6_400
"""Samples of the two kinds of utterance; a batch is cut by duration, so that rank 0 gets long ones alone."""

SPEECH = {
    "encoder": "scratch",
    "train_feature_encoder": True,
    "pooling": "mean",
    "scratch": {
        "model_type": "hubert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8, 16],
        "conv_kernel": [40, 8],
        "conv_stride": [20, 8],
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
    },
}


def build_two_kinds(
    folder: Path,
    *,
    num_train: int = 64,
    num_valid: int = 12,
    beside: bool = False,
    votes: bool = False,
    change: Callable[[int, Utterance], Utterance] | None = None,
) -> ShardSet:
    """Half the utterances short, rated near the middle; half long, rated at the ends of the scale.

    With ``beside`` two of three have a category, "calm" if short and "tense" if long, and two of three the variance of
    their raters of valence. With ``votes`` three of four have labels "calm" and "tense", .75 and .25. ``change`` is
    given the number of each utterance in its split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(5)
    utterances = []
    for split, count in (("Train", num_train), ("Development", num_valid), ("Test1", num_valid)):
        for number in range(count):
            is_long = number % 2 == 1
            samples = (LONG if is_long else SHORT) + int(generator.integers(0, 200))
            audio = folder / f"{split}-{number}.wav"
            soundfile.write(audio, generator.normal(0, 2_000, samples).astype(np.int16), 16_000, subtype="PCM_16")
            ends = generator.integers(0, 2, size=3).astype(float)
            voted = {"tense": 0.75 if is_long else 0.25, "calm": 0.25 if is_long else 0.75}
            labels = ends if is_long else 0.5 + 0.02 * generator.standard_normal(3)
            utterance = Utterance(
                key=f"{split}_{number}",
                audio=audio,
                split=split,
                labels=dict(zip(DIMENSIONS, map(float, labels), strict=True)) | (voted if votes and number % 4 else {}),
                scale=(1.0, 7.0),
                transcript=" ".join(generator.choice(WORDS, size=3)),
                speaker=f"speaker {number % 3}",
                category=("calm", "tense")[is_long] if beside and number % 3 else None,
                label_variance={"valence": 0.01 + 0.1 * is_long} if beside and number % 3 != 1 else {},
            )
            utterances.append(utterance if change is None else change(number, utterance))
    build_shard_set(
        utterances, folder / "shards", corpus="two kinds", release="1", scale=(1.0, 7.0), root=folder,
        targets=tuple(dict.fromkeys((*DIMENSIONS, *(name for one in utterances for name in one.labels)))),
        shard_bytes=60_000,
    )  # fmt: skip
    return open_shard_set(folder / "shards")


def write_run(path: Path, shards: Path, output: Path, **sections: Mapping[str, Any]) -> Path:
    """A run file: 16 utterances a step, SGD at 1e-2, fp32, no dropout, no clipping; ``sections`` are merged in."""
    tree: dict[str, Any] = {
        "run_name": path.stem,
        "output_dir": str(output),
        "seed": 3,
        # Groups of one batch: were the epoch sorted by duration, each batch would be of one kind.
        "data": {"shards": str(shards), "num_workers": 0, "bucket_batches": 1},
        "model": {"embedding_dim": 8, "speech": SPEECH},
        "batch": {"global_batch_size": 16, "micro_batch_size": 16},
        "optim": {"name": "sgd", "learning_rate": 1e-2, "encoder_lr_scale": 1.0, "lr_scheduler": "constant"},
        "train": {"epochs": 13, "max_steps": 50},
        "tracking": {"backend": "none"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(tree))
    return path


def make_cache(teacher: Path, shard_set: ShardSet, cache: Path) -> Path:
    """The teacher cache of one rank in this process."""
    cache_teacher([teacher], shard_set, cache, ranks=Ranks(), device=torch.device("cpu"))
    return cache


def read_history(output: Path) -> list[dict[str, Any]]:
    """The steps of a run, in order."""
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def read_validations(output: Path) -> list[dict[str, Any]]:
    """The validations of a run, in order, without what differs between runs that are the same: speed and memory."""
    lines = (output / "validations.jsonl").read_text().splitlines()
    uneven = (
        "epoch/utterances_per_s",
        "epoch/audio_s_per_s",
        "system/peak_memory_gb",
        "system/peak_memory_reserved_gb",
    )
    return [{key: value for key, value in json.loads(line).items() if key not in uneven} for line in lines]


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of a history must be equal in a repeated run: everything but speeds."""
    return [{key: value for key, value in step.items() if not key.endswith("_per_s")} for step in history]
