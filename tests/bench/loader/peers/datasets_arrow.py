"""HF datasets: Arrow on disk by index, with the length-grouped sampler of the transformers Trainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from material import BATCH, SHARD_UTTERANCES, Corpus, Padded, pad
from peers.decoding import decode
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler


def prepare(corpus: Corpus, folder: Path) -> None:
    """Write Arrow files."""
    features = datasets.Features(
        {
            "key": datasets.Value("string"),
            "flac": datasets.Value("binary"),
            "num_samples": datasets.Value("int64"),
            "labels": datasets.Sequence(datasets.Value("float32"), length=3),
        }
    )
    rows = [
        {"key": row.key, "flac": payload, "num_samples": row.num_samples, "labels": list(row.labels)}
        for row, payload in corpus.payloads()
    ]
    table = datasets.Dataset.from_list(rows, features=features)
    table.save_to_disk(str(folder), num_shards=-(-len(rows) // SHARD_UTTERANCES))


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    dataset = datasets.load_from_disk(str(folder))
    sampler = LengthGroupedSampler(
        BATCH, lengths=list(cast(Any, dataset)["num_samples"]), generator=torch.Generator().manual_seed(0)
    )
    return iter(
        DataLoader(cast(Any, dataset), batch_size=BATCH, sampler=sampler, collate_fn=_collate, num_workers=workers)
    )


def _collate(rows: list[dict]) -> Padded:
    return pad([decode(row["flac"]) for row in rows], [row["key"] for row in rows], [row["labels"] for row in rows])
