"""The forward pass of one or several teachers over one shard."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Float32

from ccts_dist.batches import Batch
from ccts_dist.device.arithmetic import exact_float32
from ccts_dist.errors import TeacherError
from ccts_dist.loader.collate import EncodeText, ReadSpec, read_batch
from ccts_dist.loader.micro_batches import MicroBatch
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.model import LoadedModel
from ccts_dist.records import SAMPLE_RATE_HZ, TeacherOutput
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.teacher.ensemble import Ensemble

BATCH_SECONDS = 120.0
"""Padded audio per forward pass. HuBERT's first convolution makes 0.8 GB of it in float32."""


def teacher_outputs(
    teacher: Ensemble,
    shard_set: ShardSet,
    rows: ShardRows,
    *,
    device: torch.device,
    batch_seconds: float,
    advance: Callable[[int], None],
) -> list[TeacherOutput]:
    """Output of the teacher for each utterance of one shard, in the shard's order; of several teachers, their mean.

    Audio is read once for all of them. The mean is taken in float64.

    Args:
        rows: the shard's index.
        batch_seconds: most seconds of padded audio in a forward pass.
        advance: is given the number of utterances of each forward pass.

    Raises:
        ShardError: a member is damaged.
        TeacherError: an output is not finite, or a batch does not fit the device's memory.
    """
    outputs: dict[int, TeacherOutput] = {}
    encode_texts = [None if one.tokenizer is None else one.tokenizer.encode for one in teacher.members]
    for numbers, batches in shard_batches(shard_set, rows, encode_texts, batch_seconds):
        try:
            with torch.inference_mode(), exact_float32():
                stated = [_vectors(*pair, device) for pair in zip(teacher.members, batches, strict=True)]
        except torch.OutOfMemoryError as error:
            raise TeacherError(
                f"{rows.shard}: {batches[0].audio.numel() / SAMPLE_RATE_HZ:.0f} s of padded audio do not fit the "
                f"device's memory. Lower --batch-seconds, now {batch_seconds:g}."
            ) from error
        for folder, vectors in zip(teacher.folders, stated, strict=True):
            for place in np.flatnonzero(~np.isfinite(vectors).all(1)):
                raise TeacherError(
                    f"{rows.shard}: the teacher's output for {rows.keys[numbers[place]]!r} is not finite. The teacher "
                    f"{folder} has diverged: take another checkpoint."
                )
        mean = np.stack(stated).mean(axis=0, dtype=np.float64).astype(np.float32)
        for number, vector in zip(numbers, mean, strict=True):
            embedding, prediction = np.split(vector, [teacher.embedding_size])
            outputs[number] = TeacherOutput(embedding=embedding, prediction=prediction)
        advance(len(numbers))
    return [outputs[number] for number in range(len(rows))]


def _vectors(teacher: LoadedModel, batch: Batch, device: torch.device) -> Float32[np.ndarray, "batch outputs"]:
    """Embedding and, after it, predictions of each row."""
    batch = batch.to(device)
    predicted = teacher.model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)
    return torch.cat([predicted.embedding.float(), predicted.prediction.float()], 1).cpu().numpy()


def shard_batches(
    shard_set: ShardSet,
    rows: ShardRows,
    encode_texts: Sequence[EncodeText | None],
    batch_seconds: float,
    *,
    skip_damaged: bool = False,
) -> Iterator[tuple[list[int], list[Batch]]]:
    """One shard's utterances in batches of like duration, with the numbers of their rows; read one batch ahead.

    Of each batch there is one for each of ``encode_texts``: they differ in the tokens, and share the audio.

    Args:
        rows: the shard's index.
        encode_texts: of each model; None for one that reads no transcripts.
        batch_seconds: most seconds of padded audio in a batch.
        skip_damaged: give a damaged utterance weight 0 instead of raising.

    Raises:
        ShardError: a member is damaged.
    """
    all_rows = [SampleRef(rows.shard, number, int(rows.num_samples[number]), rows) for number in range(len(rows))]
    readings = [
        ReadSpec(shards=shard_set, encode_text=encode_text, has_audio=number == 0, skip_damaged=skip_damaged)
        for number, encode_text in enumerate(encode_texts)
    ]

    def read(numbers: list[int]) -> list[Batch]:
        part = MicroBatch(tuple(all_rows[number] for number in numbers))
        first, *others = [read_batch(part, reading) for reading in readings]
        return [first, *(replace(first, tokens=other.tokens, num_tokens=other.num_tokens) for other in others)]

    # One thread: decoding lets go of the interpreter lock, and the teacher is what takes the time.
    with ThreadPoolExecutor(1) as ahead:
        cuts = cut_by_seconds([row.num_samples for row in all_rows], batch_seconds)
        coming = [ahead.submit(read, numbers) for numbers in cuts[:1]]
        for numbers, following in zip_longest(cuts, cuts[1:]):
            batch = coming.pop().result()
            if following is not None:
                coming.append(ahead.submit(read, following))
            yield numbers, batch


def cut_by_seconds(num_samples: Sequence[int], batch_seconds: float) -> list[list[int]]:
    """Places of the utterances, longest first, in runs of at most so much padded audio; a longer one is alone."""
    longest_first = sorted(range(len(num_samples)), key=lambda place: (-num_samples[place], place))
    runs: list[list[int]] = []
    for place in longest_first:
        if runs and (len(runs[-1]) + 1) * num_samples[runs[-1][0]] <= batch_seconds * SAMPLE_RATE_HZ:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
