"""Read one utterance's members from a shard, checked, and decode its audio."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from ccts_dist.audio.flac import decode_flac
from ccts_dist.errors import ShardError
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.format.schema import (
    AUDIO_MEMBER,
    JSON_MEMBER,
    label_variance_of,
    num_raters_of,
    transcript_confidence_of,
    transcript_of,
)
from ccts_dist.shards.shard_set import ShardSet

Parsed = TypeVar("Parsed")


def read_audio(shards: ShardSet, table: ShardRows, row: int, out: Float32[np.ndarray, " samples"]) -> None:
    """Decode the audio of one utterance into ``out``, which has the length that the index gives for it.

    Args:
        shards: where it lies.
        table: index rows of its shard.
        row: which of them.
        out: filled with samples on -1..1; what it holds after an error is of no meaning.

    Raises:
        ShardError: the member is damaged, or is not what the index states.
    """
    payload = shards.member(table, row, AUDIO_MEMBER)
    found = decode_flac(payload, out)
    if found is None:
        raise ShardError(
            f"{table.shard}: utterance {table.keys[row]!r}: its audio cannot be decoded, though its checksum is right. "
            f"Build the shard again."
        )
    if found != (len(out), SAMPLE_RATE_HZ, 1):
        raise ShardError(
            f"{table.shard}: utterance {table.keys[row]!r} has {found[0]} samples at {found[1]} Hz in {found[2]} "
            f"channel(s), the index states {len(out)} at {SAMPLE_RATE_HZ} Hz in 1. Build the shard again."
        )


def read_transcript(shards: ShardSet, table: ShardRows, row: int) -> str:
    """The transcript of one utterance; empty when the corpus gave none.

    Raises:
        ShardError: the member is damaged, or no utterance's.
    """
    return _of_json(shards, table, row, transcript_of)


def read_confidence(shards: ShardSet, table: ShardRows, row: int) -> float | None:
    """The recognizer's confidence in one utterance's words, 0..1; None where no recognizer made them.

    Raises:
        ShardError: the member is damaged, or no utterance's.
    """
    return _of_json(shards, table, row, transcript_confidence_of)


def read_label_variance(shards: ShardSet, table: ShardRows, row: int) -> dict[str, float]:
    """The population variance of one utterance's raters on 0..1, by target, where the corpus gave it.

    Raises:
        ShardError: the member is damaged, or no utterance's.
    """
    return _of_json(shards, table, row, label_variance_of)


def read_raters(shards: ShardSet, table: ShardRows, row: int) -> tuple[dict[str, float], int]:
    """The variances of ``read_label_variance`` and the number of raters, 0 where the corpus did not give it.

    Raises:
        ShardError: the member is damaged, or no utterance's.
    """
    return _of_json(shards, table, row, lambda data: (label_variance_of(data), num_raters_of(data)))


def _of_json(shards: ShardSet, table: ShardRows, row: int, parse: Callable[[bytes], Parsed]) -> Parsed:
    data = shards.member(table, row, JSON_MEMBER)
    try:
        return parse(data)
    except ValueError as error:
        raise ShardError(
            f"{table.shard}: json of {table.keys[row]!r} cannot be read, though its checksum is right: {error}. "
            f"Run shards/check.py {shards.root}"
        ) from error
