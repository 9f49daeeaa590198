"""Audio of any duration in blocks: the samples that a shard would carry, without ever holding the whole recording."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from ccts_dist.audio.convert import to_int16
from ccts_dist.audio.decode import UNREADABLE, open_audio, why_not_decoded
from ccts_dist.audio.limits import MAX_STREAMED_S, MIN_SAMPLES, AudioLimits, too_short
from ccts_dist.audio.mix_down import UnusableAudioError
from ccts_dist.audio.resampling import resampled


def decode_blocks(path: Path) -> Iterator[Int16[np.ndarray, " samples"] | str]:
    """A file's audio block by block; and, where it cannot be used or read to its end, why, in words, as the last item.

    End to end the blocks are what ``decode_audio`` gives of the whole. What is wrong with headers and containers is
    reported before the first block; damage within the audio, after those before it.
    """
    try:
        given = 0
        with open_audio(path, AudioLimits(max_duration_s=MAX_STREAMED_S)) as file:
            for block in resampled(file.blocks(), file.rate_hz, whole_frames=0):
                if len(block):
                    given += len(block)
                    yield to_int16(block)
        if given < MIN_SAMPLES:
            raise UnusableAudioError(too_short(given))
    except UNREADABLE as error:
        yield why_not_decoded(error)
