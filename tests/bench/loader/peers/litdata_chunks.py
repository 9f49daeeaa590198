"""litdata: its chunks, its own shuffle. It has no bucketing."""

# pyright: reportMissingImports=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset, optimize
from material import BATCH, SHARD_UTTERANCES, Corpus, Padded, pad
from peers.decoding import decode


def prepare(corpus: Corpus, folder: Path) -> None:
    """Write chunks."""
    inputs = [(row.key, payload, list(row.labels)) for row, payload in corpus.payloads()]
    optimize(_sample, inputs, output_dir=str(folder / "chunks"), chunk_size=SHARD_UTTERANCES, num_workers=1)


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    dataset = _Utterances(str(folder / "chunks"), shuffle=True, drop_last=False, seed=0)
    return iter(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_collate))


class _Utterances(StreamingDataset):
    def __getitem__(self, index: Any) -> tuple[str, np.ndarray, Any]:
        sample = super().__getitem__(index)
        return sample["key"], decode(sample["flac"]), sample["labels"]


def _sample(given: tuple[str, bytes, list[float]]) -> dict[str, Any]:
    key, payload, labels = given
    return {"key": key, "flac": payload, "labels": labels}


def _collate(samples: list[tuple[str, np.ndarray, Any]]) -> Padded:
    keys, audio, labels = zip(*samples, strict=True)
    return pad(audio, keys, labels)
