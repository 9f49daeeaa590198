"""Which utterances form which global batch: a pure function of shard set, seed, epoch and settings.

The order of an epoch never depends on the number of ranks or workers, nor on what was read before, so that a position
is (epoch, step) and resuming there is immediate:

1. The shards are shuffled by (seed, epoch) and laid end to end.
2. The sequence is taken in windows of whole steps. A shard that straddles two windows is shuffled by
   (seed, epoch, shard) first, so that each window knows its part of it and no shard's end is always cut off together.
3. In a window the utterances are shuffled, sorted by duration within groups of ``duration_group`` batches, and cut into
   batches, which are shuffled once more. Sorting a whole window would make every batch one duration and bias the
   variance of its labels.

Batch k of N utterances in K steps spans ``floor(k * N / K)`` to ``floor((k + 1) * N / K)``, so that sizes differ by at
most one.

Only the rows of the current window are in memory. Streams of shards, when there are several, each become a
``Stream`` that contributes its portion of every window; cut points and the order of batches stay common to all.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ccts_dist.distributed import derive_seed
from ccts_dist.errors import ConfigError
from ccts_dist.shards.index import ShardRows
from ccts_dist.shards.schema import ShardEntry

ORDER_VERSION = 1
"""Raised whenever equal settings would give another order; part of the digest."""

_WINDOWS_KEPT = 2


@runtime_checkable
class RowSource(Protocol):
    """What a plan asks of a shard set: counts of all shards, rows of one."""

    @property
    def digest(self) -> str:
        """Changes with the content of the shard set."""
        ...

    def shards_of(self, splits: Sequence[str], /) -> tuple[ShardEntry, ...]:
        """The shards of the named splits."""
        ...

    def rows(self, shard: str, /) -> ShardRows:
        """What the index says of one shard."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance in the plan: where its index row is, and how long it is."""

    shard: str
    row: int
    key: str
    num_samples: int


@dataclass(frozen=True, slots=True)
class Window:
    """The rows of some consecutive steps, in their final order."""

    tables: tuple[ShardRows, ...]
    table_of: Int64[np.ndarray, " rows"]
    """For each utterance, which of ``tables``; ``row_of`` is the row in it."""

    row_of: Int64[np.ndarray, " rows"]
    batches: tuple[tuple[int, int], ...]
    """For each step, where its utterances begin and end in the two arrays."""

    def table(self, shard: str) -> ShardRows:
        """The index rows of ``shard``, which is one of the window's."""
        return next(table for table in self.tables if table.shard == shard)

    def batch(self, number: int) -> tuple[Row, ...]:
        """The utterances of the window's step ``number``."""
        rows = []
        for place in range(*self.batches[number]):
            table, row = self.tables[self.table_of[place]], int(self.row_of[place])
            rows.append(Row(table.shard, row, table.keys[row], int(table.num_samples[row])))
        return tuple(rows)


def shuffled(count: int, *seed: int | str) -> Int64[np.ndarray, " count"]:
    """A permutation of ``range(count)`` that depends on the seed's parts; the same on every machine and version.

    Built on the raw output of PCG64, which numpy keeps for ever; the streams of its ``Generator`` may change.
    """
    draws = np.random.PCG64(derive_seed(*seed)).random_raw(count)
    return np.argsort(draws, kind="stable")


class Stream:
    """Shards laid end to end, in an order of each epoch's own."""

    def __init__(self, entries: Sequence[ShardEntry], source: RowSource, *, seed: int, shuffle: bool) -> None:
        used = [entry for entry in entries if entry.num_utterances > 0]
        self._names = tuple(entry.name for entry in used)
        self._counts = np.array([entry.num_utterances for entry in used], dtype=np.int64)
        self._source = source
        self._seed = seed
        self._shuffle = shuffle

    @property
    def num_utterances(self) -> int:
        """Utterances of all its shards."""
        return int(self._counts.sum())

    def portion(self, epoch: int, low: int, high: int) -> Iterator[tuple[ShardRows, Int64[np.ndarray, " rows"]]]:
        """The shards, and of each the rows, at positions ``low`` to ``high`` of the epoch's sequence."""
        count = len(self._names)
        order = shuffled(count, self._seed, epoch, "shards") if self._shuffle else np.arange(count)
        ends = np.cumsum(self._counts[order])
        for place in range(int(np.searchsorted(ends, low, side="right")), count):
            name, size = self._names[order[place]], int(self._counts[order[place]])
            begin = int(ends[place]) - size
            if begin >= high:
                return
            table = self._source.rows(name)
            rows = np.arange(size)
            if self._shuffle and (begin < low or begin + size > high):
                rows = shuffled(size, self._seed, epoch, "shard", name)
            yield table, rows[max(0, low - begin) : high - begin]


class Plan:
    """Which utterances form each global batch of each epoch.

    Knows nothing of ranks. Can be pickled; the copy reads the index for itself.

    Args:
        shard_set: where the rows come from.
        splits: which of its splits.
        global_utterances: most utterances in a global batch.
        seed: of all orders.
        window_utterances: about how many utterances are shuffled together; bounds the memory.
        duration_group: batches within which utterances are sorted by duration.
        shuffle: False for the same order in every epoch, sorted by duration within whole windows: for evaluation.

    Raises:
        ConfigError: the splits hold no utterance.
    """

    def __init__(
        self,
        shard_set: RowSource,
        splits: Sequence[str],
        *,
        global_utterances: int,
        seed: int,
        window_utterances: int,
        duration_group: int,
        shuffle: bool = True,
    ) -> None:
        self._stream = Stream(shard_set.shards_of(splits), shard_set, seed=seed, shuffle=shuffle)
        self.num_utterances = self._stream.num_utterances
        if self.num_utterances == 0:
            raise ConfigError(
                f"splits {', '.join(map(repr, splits))} hold no utterance. Name splits that `shards/info.py` shows."
            )
        self.steps_per_epoch = -(-self.num_utterances // global_utterances)
        self.window_steps = max(1, -(-window_utterances // global_utterances))
        if self.window_steps > duration_group:
            self.window_steps = -(-self.window_steps // duration_group) * duration_group
        self._seed = seed
        self._duration_group = duration_group
        self._shuffle = shuffle
        self._windows: dict[tuple[int, int], Window] = {}
        facts = {
            "order": ORDER_VERSION,
            "shards": getattr(shard_set, "content_digest", None) or shard_set.digest,
            "splits": list(splits),
            "seed": seed,
            "global_utterances": global_utterances,
            "window_utterances": window_utterances,
            "duration_group": duration_group,
            "shuffle": shuffle,
        }
        self.digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        """Hex SHA-256; equal digests mean equal global batches at every (epoch, step)."""

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_windows": {}}

    @property
    def largest_batch(self) -> int:
        """Utterances of the largest global batch; the smallest has at most one fewer."""
        return -(-self.num_utterances // self.steps_per_epoch)

    @property
    def windows_per_epoch(self) -> int:
        """Windows that an epoch is taken in."""
        return -(-self.steps_per_epoch // self.window_steps)

    def global_batch(self, epoch: int, step: int) -> tuple[Row, ...]:
        """The utterances of one step over all ranks, shortest first.

        Raises:
            ConfigError: the epoch has no such step.
        """
        return self.window(epoch, step).batch(step % self.window_steps)

    def window(self, epoch: int, step: int) -> Window:
        """The window that ``step`` lies in; the last two asked for are kept."""
        if not 0 <= step < self.steps_per_epoch or epoch < 0:
            raise ConfigError(
                f"position (epoch {epoch}, step {step}) is not in the plan: epochs count from 0 and have steps 0 to "
                f"{self.steps_per_epoch - 1}."
            )
        # An unshuffled plan is the same in every epoch.
        place = (epoch if self._shuffle else 0, step // self.window_steps)
        window = self._windows.pop(place, None)
        if window is None:
            while len(self._windows) >= _WINDOWS_KEPT:
                del self._windows[next(iter(self._windows))]
            window = self._make_window(*place)
        self._windows[place] = window  # newest last
        return window

    def _make_window(self, epoch: int, number: int) -> Window:
        first = number * self.window_steps
        steps = np.arange(first, min(first + self.window_steps, self.steps_per_epoch) + 1, dtype=np.int64)
        cuts = steps * self.num_utterances // self.steps_per_epoch
        tables, picked = [], []
        for table, rows in self._stream.portion(epoch, int(cuts[0]), int(cuts[-1])):
            tables.append(table)
            picked.append(rows)
        table_of = np.repeat(np.arange(len(tables)), [len(rows) for rows in picked])
        row_of = np.concatenate(picked)
        num_samples = np.concatenate([table.num_samples[rows] for table, rows in zip(tables, picked, strict=True)])
        cuts -= cuts[0]

        order = self._by_duration(num_samples, cuts, self._seed, epoch, "utterances", number)
        batches = list(pairwise(cuts.tolist()))
        if self._shuffle:
            batches = [batches[k] for k in shuffled(len(batches), self._seed, epoch, "batches", number)]
        return Window(tuple(tables), table_of[order], row_of[order], tuple(batches))

    def _by_duration(
        self, num_samples: Int64[np.ndarray, " rows"], cuts: Int64[np.ndarray, " batches_and_one"], *seed: int | str
    ) -> Int64[np.ndarray, " rows"]:
        count = len(num_samples)
        if not self._shuffle:
            return np.argsort(num_samples, kind="stable")
        order = shuffled(count, *seed)
        edges = [*cuts[: -1 : self._duration_group].tolist(), count]
        for low, high in pairwise(edges):
            group = order[low:high]
            # Equal durations stay in random order: sorted by key they would put one speaker's into one batch.
            order[low:high] = group[np.argsort(num_samples[group], kind="stable")]
        return order
