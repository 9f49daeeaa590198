"""A small shard set of tones, a teacher whose embedding is the utterance's number, and loaders of them."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from ccts_dist.batches import StepBatches
from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.records import DIMENSIONS, Condition, TeacherOutput, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.format.schema import TeacherFacts
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache, open_teacher_cache
from ccts_dist.shards.teacher_cache_writer import write_cache_manifest, write_cache_shard

NUM_TRAIN = 37


def wave(number: int) -> np.ndarray:
    """A tone of 0.1 to 0.4 s."""
    samples = 1_600 + (number * 613) % 4_800
    return np.round(np.sin(np.arange(samples) * (number + 1) / 90) * 12_000).astype(np.int16)


CATEGORIES = ("Happy", "Sad", None)


def labels_of(number: int) -> dict[str, float]:
    """Every fifth utterance has no valence."""
    return {d: (number + i) / 60 for i, d in enumerate(DIMENSIONS) if d != "valence" or number % 5}


def build_tones(folder: Path) -> Path:
    """The shard set: ``NUM_TRAIN`` utterances in Train and five in Test1."""
    utterances = []
    for number in range(NUM_TRAIN + 5):
        audio = folder / f"{number}.wav"
        soundfile.write(audio, wave(number), 16_000, subtype="PCM_16")
        utterances.append(
            Utterance(
                key=f"u.{number}",
                audio=audio,
                split="Train" if number < NUM_TRAIN else "Test1",
                labels=labels_of(number),
                scale=(1.0, 7.0),
                transcript="word " * (number % 4),
                category=CATEGORIES[number % 3],
            )
        )
    build_shard_set(
        utterances,
        folder / "shards",
        corpus="tones",
        release="1",
        scale=(1.0, 7.0),
        targets=DIMENSIONS,
        shard_bytes=60_000,
    )
    return folder / "shards"


class Words:
    """One token per word, numbered by its length."""

    def __call__(self, text: str) -> list[int]:
        return [1, *(len(word) for word in text.split())]


def number_teacher(folder: Path, shard_set: ShardSet) -> TeacherCache:
    """A teacher whose embedding is the utterance's number."""
    for entry in shard_set.shards_of(("Train",)):
        numbers = [(key, float(key.removeprefix("u."))) for key in shard_set.rows(entry.name).keys]
        outputs = [
            (
                key,
                TeacherOutput(
                    embedding=np.full(4, number, dtype=np.float32), prediction=np.full(3, number / 60, dtype=np.float32)
                ),
            )
            for key, number in numbers
        ]
        write_cache_shard(folder, entry.name, entry.sha256, outputs, teacher_digest="7" * 64)
    facts = TeacherFacts(
        name="numbers",
        weight_digest="7" * 64,
        targets=DIMENSIONS,
        embedding_size=4,
        embedding_mean=(0.0,) * 4,
        embedding_std=(1.0,) * 4,
        condition_sha256="",
    )
    three = (1.0, 1.0, 1.0)
    fit = Condition(targets=DIMENSIONS, w=three, b=three, residual_std=three, num_rows=(9, 9, 9), splits=("Train",))
    write_cache_manifest(folder, shard_set, facts, splits=("Train",), condition=fit, sums={})
    return open_teacher_cache(folder, shard_set)


def make_loader(shard_set: ShardSet, *, ranks: Ranks | None = None, splits=("Train",), **settings) -> Loader:
    batch = BatchConfig(
        global_batch_size=settings.pop("global_batch_size", 8),
        micro_batch_size=settings.pop("micro_batch_size", 3),
        **{name: settings.pop(name) for name in tuple(settings) if name.startswith("micro_batch_")},
    )
    data = DataConfig(
        shards=str(shard_set.root),
        num_workers=settings.pop("workers", 0),
        shuffle_buffer_size=settings.pop("shuffle_buffer_size", 24),
        bucket_batches=2,
        num_partitions=settings.pop("partitions", 1),
        on_corrupt=settings.pop("damaged", "raise"),
        max_duration_s=settings.pop("max_duration_s", 0.0),
    )
    return Loader(
        shard_set,
        splits,
        batch=batch,
        data=data,
        targets=settings.pop("targets", DIMENSIONS),
        seed=5,
        ranks=ranks or Ranks(),
        **settings,
    )


def same_steps(ours: list[StepBatches], theirs: list[StepBatches]) -> bool:
    """Bit for bit, NaN like NaN; without pickling, where equal tensors may differ."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.epoch, one.step, len(one.micro_batches)) == (other.epoch, other.step, len(other.micro_batches))
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert a.keys == b.keys
            for name in ("audio", "num_samples", "labels", "weight", "tokens", "num_tokens"):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)
            assert a.teacher is not None
            assert b.teacher is not None
            assert torch.equal(a.teacher.embedding, b.teacher.embedding)
    return True
