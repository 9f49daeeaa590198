"""A teacher's forward pass over one shard."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import torch

from ccts_dist.device.arithmetic import exact_float32
from ccts_dist.errors import TeacherError
from ccts_dist.loader.collate import EncodeText, Reading, read_batch
from ccts_dist.loader.micro_batches import MicroBatch
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.model import LoadedModel
from ccts_dist.records import SAMPLE_RATE_HZ, Batch, TeacherOutput
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.shard_set import ShardSet

BATCH_SECONDS = 120.0
"""Padded audio per forward pass. HuBERT's first convolution makes 0.8 GB of it in float32."""


def teacher_outputs(
    teacher: LoadedModel,
    shard_set: ShardSet,
    rows: ShardRows,
    *,
    device: torch.device,
    batch_seconds: float,
    advance: Callable[[int], None],
) -> list[TeacherOutput]:
    """Output of the teacher for each utterance of one shard, in the shard's order.

    Args:
        rows: the shard's index.
        batch_seconds: most seconds of padded audio in a forward pass.
        advance: is given the number of utterances of each forward pass.

    Raises:
        ShardError: a member is damaged.
        TeacherError: an output is not finite, or a batch does not fit the device's memory.
    """
    outputs: dict[int, TeacherOutput] = {}
    encode_text = None if teacher.tokenizer is None else teacher.tokenizer.encode
    for numbers, batch in shard_batches(shard_set, rows, encode_text, batch_seconds):
        batch = batch.to(device)
        try:
            with torch.inference_mode(), exact_float32():
                predicted = teacher.model(batch.audio, batch.num_samples, batch.tokens, batch.num_tokens)
        except torch.OutOfMemoryError as error:
            raise TeacherError(
                f"{rows.shard}: {batch.audio.numel() / SAMPLE_RATE_HZ:.0f} s of padded audio do not fit the device's "
                f"memory. Lower --batch-seconds, now {batch_seconds:g}."
            ) from error
        embedding, prediction = predicted.embedding.float().cpu().numpy(), predicted.prediction.float().cpu().numpy()
        for place, number in enumerate(numbers):
            if not (np.isfinite(embedding[place]).all() and np.isfinite(prediction[place]).all()):
                raise TeacherError(
                    f"{rows.shard}: the teacher's output for {rows.keys[number]!r} is not finite. The teacher has "
                    "diverged: take another checkpoint."
                )
            outputs[number] = TeacherOutput(embedding=embedding[place], prediction=prediction[place])
        advance(len(numbers))
    return [outputs[number] for number in range(len(rows))]


def shard_batches(
    shard_set: ShardSet,
    rows: ShardRows,
    encode_text: EncodeText | None,
    batch_seconds: float,
    *,
    skip_damaged: bool = False,
) -> Iterator[tuple[list[int], Batch]]:
    """One shard's utterances in batches of like duration, with the numbers of their rows; read one batch ahead.

    Args:
        rows: the shard's index.
        encode_text: for what reads transcripts.
        batch_seconds: most seconds of padded audio in a batch.
        skip_damaged: give a damaged utterance weight 0 instead of raising.

    Raises:
        ShardError: a member is damaged.
    """
    all_rows = [SampleRef(rows.shard, number, int(rows.num_samples[number]), rows) for number in range(len(rows))]
    reading = Reading(shards=shard_set, encode_text=encode_text, skip_damaged=skip_damaged)

    def read(numbers: list[int]) -> Batch:
        return read_batch(MicroBatch(tuple(all_rows[number] for number in numbers)), reading)

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
