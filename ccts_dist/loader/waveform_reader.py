"""Reading of training utterances: a crop of the long ones, changed as the run asks."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float32

from ccts_dist.audio.augment import TALKERS, Augmenter, at_speed, length_at_speed
from ccts_dist.errors import FetchError, ShardError
from ccts_dist.loader.decode import read_audio
from ccts_dist.loader.partitions import shuffled
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.process.seeds import derive_seed
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.shard_set import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """Which samples of an utterance are read, and how fast."""

    start: int
    num_read: int
    """From ``start`` on, as the shard has them."""

    num_samples: int
    """Length at their speed."""

    speed: Fraction


class WaveformReader:
    """Reads training utterances as they are to be read in an epoch. Can be used by several threads.

    Args:
        shards: where they lie.
        seed: of the run.
        max_samples: of what is read; 0 for no limit.
        augmenter: None changes nothing.
        skip_damaged: leave out a talker of babble that is damaged, instead of raising.
    """

    def __init__(
        self, shards: ShardSet, *, seed: int, max_samples: int, augmenter: Augmenter | None, skip_damaged: bool
    ) -> None:
        self._shards, self._seed = shards, seed
        self._max_samples, self._augmenter = max_samples, augmenter
        self._skip_damaged = skip_damaged

    def longest(self, num_samples: int) -> int:
        """Samples that an utterance of so many may have at most, in any epoch."""
        if self._augmenter is not None:
            num_samples = length_at_speed(num_samples, self._augmenter.slowest)
        return min(num_samples, self._max_samples or num_samples)

    def crop(self, row: SampleRef, epoch: int) -> Crop:
        """The crop of an utterance: its place is drawn from (seed, epoch, key)."""
        whole = num_read = int(row.table.num_samples[row.row])
        speed = Fraction(1) if self._augmenter is None else self._augmenter.speed(epoch, row.key)
        if self._max_samples:
            num_read = min(whole, self._max_samples * speed.numerator // speed.denominator)
        start = 0
        if num_read < whole:
            start = derive_seed("window", self._seed, epoch, row.key) % (whole - num_read + 1)
        return Crop(start=start, num_read=num_read, num_samples=length_at_speed(num_read, speed), speed=speed)

    def read(self, row: SampleRef, crop: Crop, epoch: int, out: Float32[np.ndarray, " samples"]) -> None:
        """Decode an utterance and put what is read of it into ``out``, which has ``crop.num_samples``.

        Raises:
            ShardError: the utterance is damaged, or a talker is whom its babble needs.
            ConfigError: a file of noise or an impulse response has come to be damaged.
        """
        whole = out
        if len(out) != int(row.table.num_samples[row.row]):
            whole = np.empty(int(row.table.num_samples[row.row]), np.float32)
        read_audio(self._shards, row.table, row.row, whole)
        wave = whole[crop.start : crop.start + crop.num_read]
        if self._augmenter is not None:
            wave_at_speed = at_speed(wave, crop.speed) if crop.speed != 1 else wave.astype(np.float64)
            wave = self._augmenter.change(
                wave_at_speed, epoch, row.key, lambda seed: self._talkers(row.table, row.row, seed)
            )
        out[:] = wave

    def _talkers(self, table: ShardRows, row: int, seed: int) -> Iterator[Float32[np.ndarray, " samples"]]:
        """Audio of other utterances of the same shard, which is here; fewer where the shard has no more."""
        others = [int(other) for other in shuffled(len(table), "talkers", seed) if other != row]
        for other in others[:TALKERS]:
            wave = np.empty(int(table.num_samples[other]), np.float32)
            try:
                read_audio(self._shards, table, other, wave)
            except ShardError as error:
                if not self._skip_damaged or isinstance(error, FetchError):
                    raise
                continue
            yield wave
