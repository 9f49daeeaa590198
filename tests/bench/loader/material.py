"""What every system reads: one set of utterances, and one kind of batch to make of it."""

import json
import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import speech
import torch
from torch.utils.data import get_worker_info

BATCH = 16
"""Utterances of a batch, in every system."""

SHARD_UTTERANCES = 600
"""Utterances of a shard or chunk, about 60 MB, in every system's format."""

_AUDIO, _ROWS = "audio.bin", "rows.json"


class Padded(NamedTuple):
    """What every system hands over. A worker sends the small fields as arrays: tensors cost a connection each."""

    audio: torch.Tensor
    num_samples: np.ndarray | torch.Tensor
    keys: Sequence[str]
    labels: np.ndarray | torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One utterance: where its FLAC lies, and what comes with it."""

    key: str
    offset: int
    size: int
    num_samples: int
    crc32: int
    """Of the 16 bit samples."""

    labels: tuple[float, float, float]


class Corpus:
    """The utterances, as one file of FLAC members end to end and a list of rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = [Row(**row) for row in json.loads((folder / _ROWS).read_text())]

    def payloads(self) -> Iterator[tuple[Row, bytes]]:
        """Every row with its FLAC."""
        with open(self.folder / _AUDIO, "rb") as file:
            for row in self.rows:
                yield row, file.read(row.size)

    def shards(self) -> Iterator[list[tuple[Row, bytes]]]:
        """The same in runs of ``SHARD_UTTERANCES``."""
        shard = []
        for pair in self.payloads():
            shard.append(pair)
            if len(shard) == SHARD_UTTERANCES:
                yield shard
                shard = []
        if shard:
            yield shard

    def open_audio(self) -> int:
        """A descriptor of the FLAC members."""
        return os.open(self.folder / _AUDIO, os.O_RDONLY)


class System(Protocol):
    """A module in ``peers``."""

    prepare: Callable[[Corpus, Path], None]
    """Write the corpus in the system's own format."""

    batches: Callable[[Path, int], Iterator[Padded]]
    """One epoch, shuffled, by so many workers: from opening what was prepared to the last batch."""


def make_corpus(folder: Path, count: int) -> Corpus:
    """The corpus of ``count`` utterances; made once."""
    if not (folder / _ROWS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows, offset = [], 0
        seconds = speech.durations(count)
        random.Random(0).shuffle(order := list(range(count)))
        with open(folder / _AUDIO, "wb") as file:
            for number in order:
                samples = speech.utterance(float(seconds[number]), number)
                payload = speech.flac(samples)
                rows.append(
                    {
                        "key": f"MSP-PODCAST_{number // 100:04d}_{number:05d}",
                        "offset": offset,
                        "size": file.write(payload),
                        "num_samples": len(samples),
                        "crc32": zlib.crc32(samples.tobytes()),
                        "labels": np.random.default_rng([number, 3]).uniform(0, 1, 3).astype(np.float32).tolist(),
                    }
                )
                offset += len(payload)
        (folder / _ROWS).write_text(json.dumps(rows))
    return Corpus(folder)


def pad(samples: Sequence[np.ndarray], keys: Sequence[str], labels: Sequence[Sequence[float]]) -> Padded:
    """One batch of decoded utterances, for systems that leave this to their user."""
    audio = empty_audio(len(samples), max(map(len, samples)))
    for place, one in zip(audio.numpy(), samples, strict=True):
        place[: len(one)] = one
        place[len(one) :] = 0.0
    return hand_over(audio, [len(one) for one in samples], keys, labels)


def empty_audio(rows: int, samples: int) -> torch.Tensor:
    """Room for a batch; in a worker, where the training process sees it without another copy."""
    audio = torch.empty(rows, samples)
    return audio if get_worker_info() is None else audio.share_memory_()


def hand_over(
    audio: torch.Tensor, num_samples: Sequence[int], keys: Sequence[str], labels: Sequence[Sequence[float]]
) -> Padded:
    """The batch as it leaves a worker or the loop."""
    return Padded(audio, np.array(num_samples), tuple(keys), np.array(labels, dtype=np.float32))
