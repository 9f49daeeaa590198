"""Small real shard sets and teacher caches for tests: noise in wave files, built by the real builder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ccts_dist.records import DIMENSIONS, Condition, Rejected, TeacherOutput, Utterance
from ccts_dist.shards import ShardSet, TeacherCache, TeacherFacts, open_shard_set, open_teacher_cache
from ccts_dist.shards.build.builder import BuildSummary, build_shard_set
from ccts_dist.shards.teacher_cache_writer import write_cache_manifest, write_cache_shard

EMBEDDING_SIZE = 5
TEACHER_DIGEST = "7" * 64
CONDITION = Condition(
    targets=DIMENSIONS,
    w=(1.0, 0.5, 2.0),
    b=(0.0, 0.25, -0.5),
    residual_std=(0.1, 0.2, 0.3),
    num_rows=(4, 4, 4),
    splits=("Train",),
)


def write_noise(path: Path, num_samples: int = 1600, *, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Path:
    """A 16 bit wave file of quiet noise; one that is there already is left as it is."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-3000, 3000, (num_samples, channels), dtype=np.int16)
    soundfile.write(path, noise, rate)
    return path


def make_utterances(folder: Path, count: int = 12) -> list[Utterance]:
    """Noise with keys that need escaping; every fourth in Development, every sixth without a valence label."""
    utterances = []
    for number in range(count):
        key = f"MSP/ü {number}.wav"
        labels = {"activation": number % 20 / 20, "valence": 0.5 + number % 20 / 40, "dominance": 1.0}
        if number % 6 == 5:
            del labels["valence"]
        utterances.append(
            Utterance(
                key=key,
                audio=write_noise(folder / "Audios" / f"{number}.wav", 1600 + 40 * number, seed=number),
                split="Development" if number % 4 == 3 else "Train",
                labels=labels,
                scale=(1.0, 7.0),
                transcript=f"wörds “{number}”\n",
                speaker=None if number == 4 else f"speaker {number % 3}",
                gender="Female",
                category="Happy",
                label_variance={"activation": 0.01},
                num_raters=5,
            )
        )
    return utterances


def build_example(utterances: Sequence[Utterance | Rejected], out: Path, root: Path, **settings: Any) -> BuildSummary:
    """A shard set of a few utterances per shard."""
    given = {"corpus": "example", "release": "1", "scale": (1.0, 7.0), "targets": DIMENSIONS, "shard_bytes": 12_000}
    return build_shard_set(utterances, out, root=root, **(given | settings))


def example_shard_set(folder: Path, count: int = 12) -> ShardSet:
    """The shard set of ``make_utterances``, in ``folder / "shards"``."""
    build_example(make_utterances(folder, count), folder / "shards", folder)
    return open_shard_set(folder / "shards")


def example_output(key: str) -> TeacherOutput:
    """What the example's teacher states of an utterance: a function of its key."""
    numbers = np.random.default_rng(list(key.encode())).normal(size=EMBEDDING_SIZE + len(DIMENSIONS))
    numbers = numbers.astype(np.float32)
    return TeacherOutput(embedding=numbers[:EMBEDDING_SIZE], prediction=numbers[EMBEDDING_SIZE:])


def example_facts() -> TeacherFacts:
    """Of the example's teacher."""
    return TeacherFacts(
        name="teacher",
        weight_digest=TEACHER_DIGEST,
        targets=DIMENSIONS,
        embedding_size=EMBEDDING_SIZE,
        embedding_mean=(0.0, 0.1, 0.2, 0.3, 0.4),
        embedding_std=(1.0,) * EMBEDDING_SIZE,
        condition_sha256="",
    )


def write_example_shards(root: Path, shard_set: ShardSet) -> None:
    """The tars of a teacher cache, without index and manifest."""
    for shard in shard_set.manifest.shards:
        outputs = [(key, example_output(key)) for key in shard_set.rows(shard.name).keys]
        write_cache_shard(root, shard.name, shard.sha256, outputs, teacher_digest=TEACHER_DIGEST)


def example_cache(root: Path, shard_set: ShardSet) -> TeacherCache:
    """A whole teacher cache of a shard set."""
    write_example_shards(root, shard_set)
    splits = list(shard_set.manifest.splits)
    write_cache_manifest(
        root, shard_set, example_facts(), splits=splits, condition=CONDITION, sums={"n": (4.0, 4.0, 4.0)}
    )
    return open_teacher_cache(root, shard_set)


def flip_bit(path: Path, at: int) -> None:
    """Damage one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
