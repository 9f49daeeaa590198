"""Partitions: a shard set split into fixed parts, of which each global batch takes equal shares.

With several partitions a node can read its own and no others, so that many nodes need not each fetch the whole corpus.
A partition is a stretch of a fixed order of all shards, the same in every epoch; a shard on the border of two
belongs to both, its first rows to one and its last rows to the other.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ccts_dist.process.seeds import derive_seed
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.format.record_table import numbers_of, texts_of
from ccts_dist.shards.format.schema import ShardEntry


@runtime_checkable
class RowSource(Protocol):
    """The facts of a shard set that a plan needs: counts of all shards, rows of one."""

    @property
    def digest(self) -> str:
        """Names the shard set's content."""
        ...

    def shards_of(self, splits: Sequence[str], /) -> Sequence[ShardEntry]:
        """The shards of some splits."""
        ...

    def rows(self, shard: str, /) -> ShardRows:
        """The index rows of one shard; cheap when it was the last one asked for."""
        ...


@runtime_checkable
class RowSelection(RowSource, Protocol):
    """A source that has some rows of each shard; its counts are of these."""

    def numbers(self, shard: str, /) -> Int64[np.ndarray, " rows"]:
        """Which rows of one shard they are, rising."""
        ...


def shuffled(count: int, *seed: int | str) -> Int64[np.ndarray, " count"]:
    """A permutation of ``range(count)`` that depends on the seed's parts; the same on every machine and version.

    Built on the raw output of PCG64, which numpy keeps for ever; the streams of its ``Generator`` may change.
    """
    draws = np.random.PCG64(derive_seed(*seed)).random_raw(count)
    return np.argsort(draws, kind="stable")


class Shares:
    """How many utterances each partition gives to each global batch of an epoch.

    Batch k spans ``floor(k N / K)`` to ``floor((k + 1) N / K)`` of N utterances in K steps. Partition s of S then
    gives ``floor(b (s + 1) / S) - floor(b s / S)`` of its b; so neighbouring ones, which one node reads, together never
    give more than their part of b, rounded up. Batches have one of two sizes, so every sum below is a closed form.
    """

    def __init__(self, num_utterances: int, num_steps: int, num_partitions: int) -> None:
        self._num_utterances, self._num_steps, self._num_partitions = num_utterances, num_steps, num_partitions

    def before(self, partition: int, step: int | Int64[np.ndarray, " steps"]) -> int | Int64[np.ndarray, " steps"]:
        """Utterances that ``partition`` gives to all batches before ``step``."""
        small = self._num_utterances // self._num_steps
        larger = step * self._num_utterances // self._num_steps - step * small  # batches of small + 1 so far
        return (step - larger) * self._of(partition, small) + larger * self._of(partition, small + 1)

    def of_partition(self, partition: int) -> int:
        """Utterances of a partition."""
        return int(self.before(partition, self._num_steps))

    def _of(self, partition: int, batch: int) -> int:
        return batch * (partition + 1) // self._num_partitions - batch * partition // self._num_partitions


class Partition:
    """Stretches of shards laid end to end, in an order of each epoch's own.

    Args:
        names: of the shards.
        lows: of each shard, the first row that is the partition's.
        counts: of each shard, how many rows are; at least one.
        source: of the rows.
        seed: of the order; partitions of one plan need different ones.
        shuffle: False to keep shards and rows as they are given.
    """

    def __init__(
        self,
        names: Sequence[str],
        lows: Int64[np.ndarray, " shards"],
        counts: Int64[np.ndarray, " shards"],
        source: RowSource,
        *,
        seed: Sequence[int | str],
        shuffle: bool,
    ) -> None:
        self._names = np.array([name.encode() for name in names])  # a fraction of what as many strings would take
        self._lows, self._counts = lows, counts
        self._source, self._seed, self._shuffle = source, tuple(seed), shuffle

    @property
    def num_utterances(self) -> int:
        """Utterances of all its stretches."""
        return int(self._counts.sum())

    def shards(self, epoch: int, low: int, high: int) -> tuple[str, ...]:
        """Names of the shards at positions ``low`` to ``high`` of the epoch's sequence; reads nothing."""
        return tuple(self._names[number].decode() for number, _ in self._places(epoch, low, high))

    def portion(self, epoch: int, low: int, high: int) -> Iterator[tuple[ShardRows, Int64[np.ndarray, " rows"]]]:
        """The shards, and of each the rows, at positions ``low`` to ``high`` of the epoch's sequence."""
        for number, begin in self._places(epoch, low, high):
            name, size = self._names[number].decode(), int(self._counts[number])
            table = self._source.rows(name)
            rows = np.arange(size)
            if self._shuffle and (begin < low or begin + size > high):
                rows = shuffled(size, *self._seed, epoch, "shard", name)
            picked = self._lows[number] + rows[max(0, low - begin) : high - begin]
            yield table, self._source.numbers(name)[picked] if isinstance(self._source, RowSelection) else picked

    def _places(self, epoch: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Number and first position of each stretch that lies, in part, between ``low`` and ``high``."""
        count = len(self._names)
        order = shuffled(count, *self._seed, epoch, "shards") if self._shuffle else np.arange(count)
        ends = np.cumsum(self._counts[order])
        for place in range(int(np.searchsorted(ends, low, side="right")), count):
            begin = int(ends[place] - self._counts[order[place]])
            if begin >= high:
                return
            yield int(order[place]), begin


def split_into_partitions(
    entries: Sequence[ShardEntry], source: RowSource, shares: Shares, num_partitions: int, *, seed: int, shuffle: bool
) -> tuple[Partition, ...]:
    """The partitions of some shards, of the sizes that ``shares`` gives them."""
    names, counts = texts_of(entries, "name"), numbers_of(entries, "num_utterances")
    order = np.flatnonzero(counts)
    if num_partitions > 1:
        # The corpus's order may have its sessions or speakers in a row: mixed, so that each partition is a fair sample.
        order = order[shuffled(len(order), "streams")]
    names, counts = [names[number] for number in order], counts[order]
    ends = np.cumsum(counts)
    partitions, low = [], 0
    for number in range(num_partitions):
        high = low + shares.of_partition(number)
        own = slice(int(np.searchsorted(ends, low, side="right")), int(np.searchsorted(ends, high)) + 1)
        begins = ends[own] - counts[own]
        first_rows = np.maximum(low - begins, 0)
        taken = np.minimum(high - begins, counts[own]) - first_rows
        place = ("stream", number) if num_partitions > 1 else ()
        partitions.append(Partition(names[own], first_rows, taken, source, seed=(seed, *place), shuffle=shuffle))
        low = high
    return tuple(partitions)
