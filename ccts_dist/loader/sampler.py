"""Which utterances form which global batch: a pure function of shard set, seed, epoch and settings.

The order of an epoch never depends on the number of ranks or threads, nor on what was read before, so that a position
is (epoch, step) and resuming there is immediate:

1. The shards of a partition are shuffled by (seed, epoch) and laid end to end.
2. The sequence is taken in windows of whole steps. A shard that straddles two windows is shuffled by
   (seed, epoch, shard) first, so that each window knows its part of it and no shard's end is always cut off together.
3. In a window the utterances are shuffled, sorted by duration within groups of ``bucket_batches`` batches, and cut into
   batches, which are shuffled once more. Sorting a whole window would make every batch one duration and bias the
   variance of its labels.

Batch k of N utterances in K steps spans ``floor(k * N / K)`` to ``floor((k + 1) * N / K)``, so that sizes differ by at
most one. Each of several partitions gives its share of every batch (``partitions.Shares``); the order of batches is
common to all.

Only the rows of the current window are in memory.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64

from ccts_dist.errors import ConfigError
from ccts_dist.loader.partitions import RowSource, Shares, shuffled, split_into_partitions
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.format.record_table import numbers_of

ORDER_VERSION = 1
"""Raised whenever equal settings would give another order; part of the digest."""

_CACHED_WINDOWS = 2
"""Per partition: steps near the border of two windows are asked for in turn by threads that read ahead."""


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One utterance in the plan: where its index row is, and how long it is."""

    shard: str
    row: int
    num_samples: int
    """That are read of it, at most the plan's ``max_samples``."""

    table: ShardRows = field(compare=False, repr=False)
    """The shard's index."""

    @property
    def key(self) -> str:
        """The utterance's key."""
        return self.table.keys[self.row]


@dataclass(frozen=True, slots=True)
class Window:
    """The rows that one partition gives to some consecutive steps, in their final order."""

    tables: tuple[ShardRows, ...]
    table_of: Int64[np.ndarray, " rows"]
    """For each utterance, which of ``tables``; ``row_of`` is the row in it."""

    row_of: Int64[np.ndarray, " rows"]
    batches: tuple[tuple[int, int], ...]
    """For each step, where its utterances begin and end in the two arrays."""

    max_samples: int

    def batch(self, number: int) -> list[SampleRef]:
        """The utterances of the window's step ``number``."""
        rows = []
        for place in range(*self.batches[number]):
            table, row = self.tables[self.table_of[place]], int(self.row_of[place])
            num_samples = int(table.num_samples[row])
            rows.append(SampleRef(table.shard, row, min(num_samples, self.max_samples or num_samples), table))
        return rows


class BatchSampler:
    """Which utterances form each global batch of each epoch.

    Knows nothing of ranks. Can be used by several threads, and pickled; the copy reads the index for itself.

    Args:
        shard_set: where the rows come from.
        splits: which of its splits.
        global_batch_size: most utterances in a global batch.
        seed: of all orders.
        shuffle_buffer_size: about how many utterances are shuffled together; bounds the memory.
        bucket_batches: batches within which utterances are sorted by duration.
        partitions: parts of the shard set that give equal shares of every batch.
        shuffle: False for the same order in every epoch, sorted by duration within whole windows: for evaluation.
        max_samples: longer utterances count as of this length; 0 for no limit.

    Raises:
        ConfigError: the splits hold no utterance, or there are more partitions than utterances in a batch.
    """

    def __init__(
        self,
        shard_set: RowSource,
        splits: Sequence[str],
        *,
        global_batch_size: int,
        seed: int,
        shuffle_buffer_size: int,
        bucket_batches: int,
        partitions: int = 1,
        shuffle: bool = True,
        max_samples: int = 0,
    ) -> None:
        entries = shard_set.shards_of(splits)
        self.num_utterances = int(numbers_of(entries, "num_utterances").sum())
        if self.num_utterances == 0:
            raise ConfigError(
                f"splits {', '.join(map(repr, splits))} hold no utterance. Name splits that `shards/info.py` shows."
            )
        self.steps_per_epoch = -(-self.num_utterances // global_batch_size)
        if partitions > self.num_utterances // self.steps_per_epoch:
            raise ConfigError(
                f"data.num_partitions={partitions}: a global batch of "
                f"{self.num_utterances // self.steps_per_epoch} utterances has no share for each. Use fewer "
                "streams, or larger batches."
            )
        self._shares = Shares(self.num_utterances, self.steps_per_epoch, partitions)
        self._partitions = split_into_partitions(
            entries, shard_set, self._shares, partitions, seed=seed, shuffle=shuffle
        )
        self.window_steps = max(1, -(-shuffle_buffer_size // global_batch_size))
        if self.window_steps > bucket_batches:
            self.window_steps = -(-self.window_steps // bucket_batches) * bucket_batches
        self._seed = seed
        self._bucket_batches = bucket_batches
        self._shuffle = shuffle
        self._max_samples = max_samples
        self._windows: dict[tuple[int, int, int], Window] = {}
        self._lock = threading.Lock()
        facts = {
            "order": ORDER_VERSION,
            "shards": getattr(shard_set, "content_digest", None) or shard_set.digest,
            "splits": list(splits),
            "seed": seed,
            "global_utterances": global_batch_size,
            "window_utterances": shuffle_buffer_size,
            "duration_group": bucket_batches,
            "streams": partitions,
            "shuffle": shuffle,
        }
        if max_samples:  # a plan without keeps the digest that it had when there was no such limit
            facts["max_samples"] = max_samples
        self.digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        """Hex SHA-256; equal digests mean equal global batches at every (epoch, step)."""

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_windows": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def num_partitions(self) -> int:
        """Parts of the shard set that give equal shares of every batch."""
        return len(self._partitions)

    @property
    def largest_batch(self) -> int:
        """Utterances of the largest global batch; the smallest has at most one fewer."""
        return -(-self.num_utterances // self.steps_per_epoch)

    @property
    def windows_per_epoch(self) -> int:
        """Windows that an epoch is taken in."""
        return -(-self.steps_per_epoch // self.window_steps)

    def global_batch(self, epoch: int, step: int, partitions: range | None = None) -> tuple[SampleRef, ...]:
        """The utterances of one step over all ranks, shortest first.

        Args:
            partitions: what these partitions give to it, and no more; None for all.

        Raises:
            ConfigError: the epoch has no such step.
        """
        self._check(epoch, step)
        rows = []
        for partition in partitions or range(self.num_partitions):
            window = self._window(epoch, step // self.window_steps, partition)
            rows += window.batch(step % self.window_steps)
        return tuple(sorted(rows, key=lambda row: row.num_samples))

    def shards_of_window(self, epoch: int, number: int, partitions: range | None = None) -> tuple[str, ...]:
        """Names of the shards that a window takes utterances from, in the order of the epoch; reads nothing."""
        names = []
        for partition in partitions or range(self.num_partitions):
            low, *_, high = self._cuts(number, partition).tolist()
            names += self._partitions[partition].shards(epoch, low, high)
        return tuple(dict.fromkeys(names))

    def _check(self, epoch: int, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch or epoch < 0:
            raise ConfigError(
                f"position (epoch {epoch}, step {step}) is not in the plan: epochs count from 0 and have steps 0 to "
                f"{self.steps_per_epoch - 1}."
            )

    def _window(self, epoch: int, number: int, partition: int) -> Window:
        """The window's rows from ``partition``; the last ones asked for are kept."""
        # An unshuffled plan is the same in every epoch.
        place = (epoch if self._shuffle else 0, number, partition)
        with self._lock:
            window = self._windows.pop(place, None)
            if window is None:
                while len(self._windows) >= _CACHED_WINDOWS * self.num_partitions:
                    del self._windows[next(iter(self._windows))]
                window = self._make_window(*place)
            self._windows[place] = window  # newest last
            return window

    def _cuts(self, number: int, partition: int) -> Int64[np.ndarray, " batches_and_one"]:
        """Bounds of the window's batches in the partition's sequence."""
        first = number * self.window_steps
        steps = np.arange(first, min(first + self.window_steps, self.steps_per_epoch) + 1, dtype=np.int64)
        return np.asarray(self._shares.before(partition, steps))

    def _make_window(self, epoch: int, number: int, partition: int) -> Window:
        cuts = self._cuts(number, partition)
        tables, picked = [], []
        for table, rows in self._partitions[partition].portion(epoch, int(cuts[0]), int(cuts[-1])):
            tables.append(table)
            picked.append(rows)
        table_of = np.repeat(np.arange(len(tables)), [len(rows) for rows in picked])
        row_of = np.concatenate(picked)
        num_samples = np.concatenate([table.num_samples[rows] for table, rows in zip(tables, picked, strict=True)])
        if self._max_samples:
            num_samples = np.minimum(num_samples, self._max_samples)
        cuts -= cuts[0]

        own = ("stream", partition) if self.num_partitions > 1 else ()
        order = self._by_duration(num_samples, cuts, self._seed, *own, epoch, "utterances", number)
        batches = list(pairwise(cuts.tolist()))
        if self._shuffle:
            batches = [batches[k] for k in shuffled(len(batches), self._seed, epoch, "batches", number)]
        return Window(tuple(tables), table_of[order], row_of[order], tuple(batches), self._max_samples)

    def _by_duration(
        self, num_samples: Int64[np.ndarray, " rows"], cuts: Int64[np.ndarray, " batches_and_one"], *seed: int | str
    ) -> Int64[np.ndarray, " rows"]:
        count = len(num_samples)
        if not self._shuffle:
            return np.argsort(num_samples, kind="stable")
        order = shuffled(count, *seed)
        edges = [*cuts[: -1 : self._bucket_batches].tolist(), count]
        for low, high in pairwise(edges):
            group = order[low:high]
            # Equal durations stay in random order: sorted by key they would put one speaker's into one batch.
            order[low:high] = group[np.argsort(num_samples[group], kind="stable")]
        return order
