"""Extracts of single utterances for a page: the worst predicted, and on request their words and their sound."""

from dataclasses import dataclass

import numpy as np

from ccts_dist.loader.decode import read_transcript
from ccts_dist.scoring import PredictionTable
from ccts_dist.shards.format.schema import AUDIO_MEMBER
from ccts_dist.shards.shard_set import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """One utterance."""

    row: int
    """In the table."""

    error: float
    """Mean over the rated targets of |prediction - label|, on 0..1."""

    transcript: str = ""
    """"" unless it was asked for."""

    flac: bytes = b""
    """Its sound as the shard has it; empty unless it was asked for."""


def worst_utterances(table: PredictionTable, count: int = 20) -> tuple[Extract, ...]:
    """Those with the largest errors, the worst first; utterances that nobody rated have none."""
    off = np.abs(table.predictions - table.labels)
    rated = (~np.isnan(off)).sum(axis=1)
    error = np.where(rated > 0, np.nansum(off, axis=1) / np.maximum(rated, 1), -1.0)
    order = np.argsort(-error, kind="stable")[:count]
    return tuple(Extract(row=int(row), error=float(error[row])) for row in order if error[row] >= 0)


def with_contents(
    extracts: tuple[Extract, ...],
    table: PredictionTable,
    shard_set: ShardSet,
    split: str,
    *,
    transcripts: bool,
    sound: bool,
) -> tuple[Extract, ...]:
    """The same utterances with their words, their sound, or both, from the shards.

    Raises:
        ShardError: a shard is damaged.
        FetchError: it cannot be fetched.
    """
    wanted = {table.keys[one.row]: one for one in extracts}
    found: dict[int, Extract] = {}
    for shard in shard_set.shards_of((split,)):
        rows = shard_set.rows(shard.name)
        for row, key in enumerate(rows.keys):
            if key in wanted:
                one = wanted[key]
                found[one.row] = Extract(
                    row=one.row,
                    error=one.error,
                    transcript=read_transcript(shard_set, rows, row) if transcripts else "",
                    flac=shard_set.member(rows, row, AUDIO_MEMBER) if sound else b"",
                )
    return tuple(found[one.row] for one in extracts)
