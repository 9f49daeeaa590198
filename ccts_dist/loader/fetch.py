"""Read one utterance's members from a local shard, checked, and decode its audio."""

import io
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from ccts_dist.errors import ShardError
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.shards.index import ShardRows
from ccts_dist.shards.read import read_member, read_utterance_json
from ccts_dist.shards.schema import AUDIO_MEMBER


def read_audio(path: Path, table: ShardRows, row: int, out: Float32[np.ndarray, " samples"]) -> None:
    """Decode the audio of one utterance into ``out``, which has the length that the index gives for it.

    Args:
        path: the shard.
        table: its index rows.
        row: which of them.
        out: filled with samples on -1..1.

    Raises:
        ShardError: the member is damaged, or is not what the index says.
    """
    key = table.keys[row]
    payload = read_member(path, table.members[AUDIO_MEMBER], row, key=key, member=AUDIO_MEMBER)
    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as sound:
            found = (sound.frames, sound.samplerate, sound.channels)
            if found == (len(out), SAMPLE_RATE_HZ, 1):
                found = (len(sound.read(dtype="float32", out=out)), SAMPLE_RATE_HZ, 1)
    except soundfile.SoundFileError as error:
        raise ShardError(
            f"{table.shard}: utterance {key!r}: its audio cannot be decoded ({error}), though its checksum is right. "
            f"Build the shard again."
        ) from error
    if found != (len(out), SAMPLE_RATE_HZ, 1):
        raise ShardError(
            f"{table.shard}: utterance {key!r} has {found[0]} samples at {found[1]} Hz in {found[2]} channel(s), "
            f"the index says {len(out)} at {SAMPLE_RATE_HZ} Hz in 1. Build the shard again."
        )


def read_transcript(path: Path, table: ShardRows, row: int) -> str:
    """The words of one utterance; empty when the corpus gave none.

    Raises:
        ShardError: the member is damaged.
    """
    return str(read_utterance_json(path, table, row)["transcript"])
