"""NVIDIA megatron-energon: WebDataset tars with its metadata, batches grouped by duration with its grouping hook."""

# pyright: reportMissingImports=false

import json
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
from material import BATCH, Corpus, Padded, pad
from megatron.energon import (
    Cooker,
    CrudeSample,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors import BaseWebdatasetFactory
from peers.decoding import decode
from peers.tars import write_tars

SHUFFLE = 1000
GROUP_S = 0.5
"""Utterances whose durations fall in the same half second share batches."""


@edataclass
class Encoded(Sample):
    """One utterance as the shuffle buffer holds it."""

    flac: bytes
    labels: list[float]


@edataclass
class Utterance(Sample):
    """One utterance, decoded."""

    audio: np.ndarray
    labels: list[float]


@stateless
def _cook(sample: CrudeSample) -> Encoded:
    return Encoded(**basic_sample_keys(sample), flac=sample["flac"], labels=json.loads(sample["json"])["labels"])


class _Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = [Cooker(_cook)]  # noqa: RUF012 - as its documentation has it

    @stateless
    def encode_sample(self, sample: Encoded) -> Utterance:
        """Decode."""
        return Utterance.derive_from(sample, audio=decode(sample.flac), labels=sample.labels)

    def batch_group_criterion(self, sample: Utterance) -> tuple[Hashable, int]:
        """Utterances of about one duration."""
        return int(len(sample.audio) / 16_000 / GROUP_S), BATCH

    @stateless
    def batch(self, samples: list[Utterance]) -> Padded:
        """Pad."""
        keys = [sample.__key__.rsplit("/", 1)[-1] for sample in samples]
        return pad([sample.audio for sample in samples], keys, [sample.labels for sample in samples])


def prepare(corpus: Corpus, folder: Path) -> None:
    """Write tars and energon's metadata."""
    names = [path.name for path in write_tars(corpus, folder)]
    (folder / ".nv-meta").mkdir()
    (folder / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
    BaseWebdatasetFactory.prepare_dataset(folder, names, split_parts_ratio=[("train", 1.0)], workers=1)


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=None,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=100,
        task_encoder=_Encoder(),
        repeat=False,
    )
    return iter(get_loader(dataset))
