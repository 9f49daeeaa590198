"""MosaicML streaming: MDS shards by index, its own shuffle (py1e). It has no bucketing."""

# pyright: reportMissingImports=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from material import BATCH, SHARD_UTTERANCES, Corpus, Padded, pad
from peers.decoding import decode
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


def prepare(corpus: Corpus, folder: Path) -> None:
    """Write MDS shards."""
    size = sum(row.size for row in corpus.rows) * SHARD_UTTERANCES // len(corpus.rows)
    columns = {"key": "str", "flac": "bytes", "labels": "ndarray:float32:3"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=size) as writer:
        for row, payload in corpus.payloads():
            writer.write({"key": row.key, "flac": payload, "labels": np.array(row.labels, dtype=np.float32)})


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    clean_stale_shared_memory()  # of a process that was killed; otherwise it refuses to start
    dataset = _Utterances(local=str(folder / "mds"), batch_size=BATCH, shuffle=True, num_canonical_nodes=1)
    return iter(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_collate))


class _Utterances(StreamingDataset):
    def __getitem__(self, at: int) -> tuple[str, np.ndarray, Any]:
        sample = super().__getitem__(at)
        return sample["key"], decode(sample["flac"]), sample["labels"]


def _collate(samples: list[tuple[str, np.ndarray, Any]]) -> Padded:
    keys, audio, labels = zip(*samples, strict=True)
    return pad(audio, keys, labels)
