"""The student of the paper's size, HuBERT-large from random weights, and batches of it; or a small stand-in."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccts_dist.batches import Batch, StepBatches
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.train.steps.step import train_step
from tests.gpu.material import student_speech, write_run
from tests.gpu.situation import Situation
from tests.gpu.steps import Training
from tests.helpers.models.large_student import LARGE, build_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it."""

    rows: tuple[int, ...]
    """Utterances of a micro-batch, rising."""

    seconds: float
    steps: int
    """That are timed, after as many as ``warm_up``."""

    warm_up: int


def size_for(situation: Situation) -> Size:
    """The audit's sizes on a GPU; a rehearsal's on a CPU."""
    if situation.small:
        return Size(rows=(2, 4), seconds=1.1, steps=3, warm_up=1)
    return Size(rows=(8, 16, 32, 64), seconds=5.5, steps=8, warm_up=3)


def make_seconds(situation: Situation) -> Path:
    """Shards of noise, all utterances of ``Size.seconds``."""
    size = size_for(situation)
    build_seconds(
        situation.work / "seconds", num_train=size.rows[-1], num_valid=size.rows[-1],
        shortest_s=size.seconds, longest_s=size.seconds,
    )  # fmt: skip
    return situation.work / "seconds" / "shards"


def write_large_run(
    situation: Situation, name: str, *, stage: str = "zero2", recomputed: bool = False, pooling: str = "gru"
) -> Path:
    """Its run file: one micro-batch a step, AdamW, bf16 on a GPU."""
    rows = size_for(situation).rows[-1]
    shape = {"hidden_dropout": 0.1, "attention_dropout": 0.1} if situation.small else {}
    speech = student_speech(pooling=pooling, shape=shape)
    if not situation.small:
        speech = {"encoder": "scratch", "pooling": pooling, "scratch": {"model_type": "hubert", **LARGE}}
    return write_run(
        situation.work / f"{name}.toml", situation.pack,
        data={"shards": str(situation.work / "seconds" / "shards"), "teacher_cache": None},
        model={"speech": speech, "gradient_checkpointing": recomputed},
        batch={"global_batch_size": rows, "micro_batch_size": rows},
        optim={"name": "adamw", "learning_rate": 1e-5, "max_grad_norm": 1.0},
        train={"deepspeed": f"ds_configs/{stage}.json", "precision": "bf16" if situation.on_gpu else "fp32"},
    )  # fmt: skip


def first_batch(ready: Training) -> Batch:
    """The largest micro-batch, on the host."""
    return next(iter(ready.experiment.loader.epoch(0))).micro_batches[0]


def with_rows(batch: Batch, rows: int) -> Batch:
    """Its first rows, which are as long as all of them."""
    return replace(
        batch, keys=batch.keys[:rows], audio=batch.audio[:rows], num_samples=batch.num_samples[:rows],
        labels=batch.labels[:rows], weight=batch.weight[:rows],
    )  # fmt: skip


def twice_as_long(batch: Batch, rows: int) -> Batch:
    """So many rows, each the audio of two one after the other."""
    audio = torch.cat([batch.audio[:rows], batch.audio[rows : 2 * rows]], dim=1)
    return replace(with_rows(batch, rows), audio=audio, num_samples=batch.num_samples[:rows] * 2)


def varied(batch: Batch, count: int, *, seed: int, multiple_s: float = 0.0) -> Iterator[Batch]:
    """The same rows cut to lengths as MSP-Podcast's, lognormal, padded to the longest or to a multiple of seconds."""
    generator = np.random.default_rng(seed)
    longest = batch.audio.shape[1]
    for _ in range(count):
        drawn = longest * np.clip(generator.lognormal(np.log(0.45), 0.4, len(batch.keys)), 0.23, 1.0)
        samples = torch.from_numpy(drawn.astype(np.int64))
        width = int(samples.max())
        if multiple_s:
            step = int(multiple_s * SAMPLE_RATE_HZ)
            width = min(longest, -(-width // step) * step)
        audio = batch.audio[:, :width].clone()
        audio[torch.arange(width) >= samples[:, None]] = 0.0
        yield replace(batch, audio=audio, num_samples=samples)


def step(ready: Training, batch: Batch, number: int = 0) -> float:
    """One optimizer step of one micro-batch; its loss."""
    batches = StepBatches(epoch=0, step=number, micro_batches=(batch,))
    result: Any = train_step(ready.engine, batches, ready.experiment.objective, seed=ready.run.seed)
    return result.loss
