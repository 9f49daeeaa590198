"""The floor: read, decode with libsndfile, pad, in one loop over the utterances sorted by duration. No shuffling."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from material import BATCH, Corpus, Padded, Row, empty_audio, hand_over
from torch.utils.data import DataLoader, Dataset


def prepare(corpus: Corpus, folder: Path) -> None:
    """Nothing but a link: the floor reads the corpus as it is."""
    (folder / "corpus").symlink_to(corpus.folder.absolute())


def batches(folder: Path, workers: int) -> Iterator[Padded]:
    """One epoch."""
    return loop(folder, workers, _decode)


def loop(folder: Path, workers: int, decode: Callable[[bytes, np.ndarray], None]) -> Iterator[Padded]:
    """One epoch with a decoder that fills a row."""
    dataset = _Batches(Corpus(folder / "corpus"), decode)
    if workers == 0:
        yield from (dataset[number] for number in range(len(dataset)))
    else:
        yield from DataLoader(dataset, batch_size=None, num_workers=workers)


class _Batches(Dataset[Padded]):
    def __init__(self, corpus: Corpus, decode: Callable[[bytes, np.ndarray], None]) -> None:
        rows = sorted(corpus.rows, key=lambda row: -row.num_samples)
        self._batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        self._audio = corpus.open_audio()
        self._decode = decode

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Padded:
        rows: list[Row] = self._batches[number]
        audio = empty_audio(len(rows), rows[0].num_samples)
        for row, place in zip(rows, audio.numpy(), strict=True):
            self._decode(os.pread(self._audio, row.size, row.offset), place[: row.num_samples])
            place[row.num_samples :] = 0.0
        return hand_over(
            audio, [row.num_samples for row in rows], [row.key for row in rows], [row.labels for row in rows]
        )


def _decode(payload: bytes, out: np.ndarray) -> None:
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        file.read(dtype="float32", out=out)
