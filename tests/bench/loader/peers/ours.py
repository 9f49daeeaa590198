"""This project's loader."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from material import BATCH, SHARD_UTTERANCES, Corpus, Padded

from ccts_dist.config.schema import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks
from ccts_dist.loader.loader import Loader
from ccts_dist.records import DIMENSIONS, Utterance
from ccts_dist.shards.build.builder import build_shard_set
from ccts_dist.shards.shard_set import open_shard_set


def prepare(corpus: Corpus, folder: Path) -> None:
    """Build a shard set."""
    audio = folder / "audio"
    audio.mkdir()
    utterances = []
    for row, payload in corpus.payloads():
        path = audio / f"{row.key}.flac"
        path.write_bytes(payload)
        labels: dict[str, float] = dict(zip(DIMENSIONS, row.labels, strict=True))
        utterances.append(Utterance(key=row.key, audio=path, split="Train", labels=labels, scale=(1, 7)))
    size = sum(row.size for row in corpus.rows) * SHARD_UTTERANCES // len(corpus.rows)
    build_shard_set(
        utterances,
        folder / "shards",
        corpus="bench",
        release="1",
        scale=(1, 7),
        targets=DIMENSIONS,
        root=audio,
        shard_bytes=size,
    )
    shutil.rmtree(audio)


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    root = folder / "shards"
    loader = Loader(
        open_shard_set(root),
        ["Train"],
        batch=BatchConfig(global_batch_size=BATCH, micro_batch_size=BATCH),
        data=DataConfig(shards=str(root), num_workers=workers, bucket_batches=32),
        targets=DIMENSIONS,
        seed=0,
        ranks=Ranks(),
    )
    for step in loader.epoch(0):
        for batch in step.micro_batches:
            yield Padded(batch.audio, batch.num_samples, batch.keys, batch.labels)
    loader.close()
