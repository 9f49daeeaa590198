"""Make one padded ``Batch`` of the utterances of a part."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import get_worker_info

from ccts_dist.loader.cut import Part
from ccts_dist.loader.fetch import read_audio, read_transcript
from ccts_dist.loader.plan import Row, Window
from ccts_dist.records import Batch, TeacherBatch, TeacherOutput
from ccts_dist.shards.read import ShardSet

EncodeText = Callable[[str], Sequence[int]]
"""A transcript to token numbers."""


@runtime_checkable
class TeacherSource(Protocol):
    """Where cached teacher outputs come from."""

    def read(self, shard: str, row: int, key: str, /) -> TeacherOutput:
        """The teacher's output for one utterance, which is row ``row`` of its shard."""
        ...


def read_batch(
    part: Part,
    window: Window,
    shards: ShardSet,
    *,
    targets: Sequence[str],
    encode_text: EncodeText | None,
    teacher: TeacherSource | None,
) -> Batch:
    """Read the utterances of ``part`` into one padded batch.

    Args:
        part: which utterances.
        window: the plan's window that they come from.
        shards: where their shards lie.
        targets: names of the labels, in the order of the batch's columns.
        encode_text: for models with a text branch; without it the transcripts are not read.
        teacher: for students; without it the batch has no teacher outputs.

    Raises:
        ShardError: a member is damaged.
        TeacherError: an utterance has no sound teacher output.
    """
    tables = {row.shard: window.table(row.shard) for row in part.rows}
    labels = [[tables[row.shard].labels[target][row.row] for target in targets] for row in part.rows]
    tokens = num_tokens = None
    if encode_text is not None:
        texts = (read_transcript(shards.path(row.shard), tables[row.shard], row.row) for row in part.rows)
        tokens, num_tokens = pad_tokens([encode_text(text) for text in texts])

    # Allocated where the training process can see it, so that a worker decodes straight into what it hands over.
    audio = torch.empty(len(part.rows), max(row.num_samples for row in part.rows))
    if get_worker_info() is not None:
        audio.share_memory_()
    for place, row in zip(audio.numpy(), part.rows, strict=True):
        read_audio(shards.path(row.shard), tables[row.shard], row.row, place[: row.num_samples])
        place[row.num_samples :] = 0.0
    return Batch(
        keys=tuple(row.key for row in part.rows),
        audio=audio,
        num_samples=torch.tensor([row.num_samples for row in part.rows]),
        labels=torch.tensor(np.array(labels), dtype=torch.float32),
        weight=torch.full((len(part.rows),), float(part.counts)),
        tokens=tokens,
        num_tokens=num_tokens,
        teacher=None if teacher is None else _teacher_batch(part.rows, teacher),
    )


def pad_tokens(encoded: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "batch tokens"], Int64[Tensor, " batch"]]:
    """Token numbers padded with zeros, and how many each row has."""
    num_tokens = [len(tokens) for tokens in encoded]
    padded = torch.zeros(len(encoded), max(num_tokens), dtype=torch.int64)
    for place, tokens in zip(padded, encoded, strict=True):
        place[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return padded, torch.tensor(num_tokens)


def _teacher_batch(rows: Sequence[Row], teacher: TeacherSource) -> TeacherBatch:
    outputs = [teacher.read(row.shard, row.row, row.key) for row in rows]
    return TeacherBatch(
        embedding=_stack([output.embedding for output in outputs]),
        prediction=_stack([output.prediction for output in outputs]),
    )


def _stack(arrays: Sequence[Float32[np.ndarray, " columns"]]) -> Float32[Tensor, "batch columns"]:
    return torch.from_numpy(np.stack(arrays))
