"""webdataset: sequential tars, shuffled shards, a shuffle buffer of encoded samples. It has no bucketing."""

# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Iterator
from pathlib import Path

import webdataset as wds
from material import BATCH, Corpus, Padded, pad
from peers.decoding import decode
from peers.tars import write_tars

SHUFFLE = 1000


def prepare(corpus: Corpus, folder: Path) -> None:
    """Write tars."""
    write_tars(corpus, folder)


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = wds.DataPipeline(
        wds.SimpleShardList(urls, seed=0),
        wds.shuffle(len(urls)),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(SHUFFLE),
        wds.map(lambda sample: (sample["__key__"], decode(sample["flac"]), json.loads(sample["json"])["labels"])),
        wds.batched(BATCH, collation_fn=_collate, partial=True),
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def _collate(samples: list[tuple]) -> Padded:
    keys, audio, labels = zip(*samples, strict=True)
    return pad(audio, keys, labels)
