"""lhotse Shar: sequential tars, with its dynamic bucketing (bins estimated beforehand, as its guide advises)."""

# pyright: reportMissingImports=false

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut, Recording
from lhotse.dataset import DynamicBucketingSampler, IterableDatasetWrapper
from lhotse.dataset.collation import collate_audio
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from material import BATCH, SHARD_UTTERANCES, Corpus, Padded, hand_over
from torch.utils.data import DataLoader

NUM_BUCKETS = 30
BUFFER = 2000
"""Cuts held for bucketing; with its default of 20,000 it would hold the whole corpus before the first batch."""


def prepare(corpus: Corpus, folder: Path) -> None:
    """Write Shar files and the duration bins."""
    cuts = CutSet.from_cuts(
        MonoCut(
            id=row.key,
            start=0.0,
            duration=(recording := Recording.from_bytes(payload, recording_id=row.key)).duration,
            channel=0,
            recording=recording,
            custom={"labels": row.labels},
        )
        for row, payload in corpus.payloads()
    )
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=SHARD_UTTERANCES)
    (folder / "bins.json").write_text(json.dumps(estimate_duration_buckets(cuts, NUM_BUCKETS)))


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    cuts = CutSet.from_shar(in_dir=folder / "shar", shuffle_shards=True, seed=0, split_for_dataloading=workers > 0)
    sampler = DynamicBucketingSampler(
        cuts,
        max_cuts=BATCH,
        shuffle=True,
        duration_bins=json.loads((folder / "bins.json").read_text()),
        buffer_size=BUFFER,
        world_size=1,
        rank=0,
    )
    return iter(DataLoader(IterableDatasetWrapper(_Batches(), sampler), batch_size=None, num_workers=workers))


class _Batches(torch.utils.data.Dataset[Padded]):
    def __getitem__(self, cuts: CutSet) -> Padded:
        audio, num_samples = collate_audio(cuts)
        return hand_over(audio, num_samples.tolist(), [cut.id for cut in cuts], [cut.labels for cut in cuts])
