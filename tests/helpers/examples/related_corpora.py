"""A small corpus for any run file: its splits, targets and categories; noise, and words by chance."""

from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile

from ccts_dist.config import RunConfig
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import ShardSet, open_shard_set
from tests.helpers.models.small_teacher import WORDS

PER_SPLIT = 24
VARIANCE = ".variance"


def build_for(run: RunConfig, folder: Path) -> ShardSet:
    """Shards that the run can be trained on. Where it wants unlabelled utterances, half of the training ones are."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    targets = tuple(name for name in run.model.targets if not name.endswith(VARIANCE)) or DIMENSIONS
    varied = [name.removesuffix(VARIANCE) for name in run.model.targets if name.endswith(VARIANCE)]
    categories = cycle((*run.model.categories, *run.model.category_map) or (None,))
    utterances = []
    for split in dict.fromkeys((*run.data.train_splits, *run.data.valid_splits, *run.data.test_splits)):
        for number in range(PER_SPLIT):
            audio = folder / f"{split}-{number}.wav"
            noise = generator.normal(0, 3_000, int(generator.integers(6_400, 9_600)))
            soundfile.write(audio, noise.astype(np.int16), 16_000, subtype="PCM_16")
            unlabelled = run.batch.labelled_share is not None and split in run.data.train_splits and number % 2 == 1
            utterances.append(
                Utterance(
                    key=f"{split}_{number}",
                    audio=audio,
                    split=split,
                    labels={} if unlabelled else {target: float(generator.random()) for target in targets},
                    scale=(1.0, 5.0),
                    transcript=" ".join(generator.choice(WORDS, size=3)),
                    speaker=f"speaker {number % 3}",
                    category=next(categories),
                    label_variance={target: float(0.2 * generator.random()) for target in varied},
                )
            )
    build_shard_set(
        utterances, folder / "shards", corpus="noise", release="1", scale=(1.0, 5.0), targets=targets, root=folder,
        shard_bytes=200_000,
    )  # fmt: skip
    return open_shard_set(folder / "shards")
