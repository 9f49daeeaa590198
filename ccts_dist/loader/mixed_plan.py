"""Global batches with set shares, plans side by side: of labelled utterances and others, of categories, or of
several shard sets."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from ccts_dist.errors import ConfigError
from ccts_dist.loader.joined_shards import JoinedShards
from ccts_dist.loader.partitions import RowSource
from ccts_dist.loader.sampler import BatchSampler, SampleRef
from ccts_dist.records import mapped_category
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.format.schema import ShardEntry


class SelectedRows:
    """Some utterances of a shard set, for a plan.

    Reads the index of the splits once, to count them.

    Args:
        source: the shard set.
        splits: which of its splits.
        select: which rows of a shard are meant; can be pickled.
        words: what they are, for the digest.
    """

    def __init__(
        self,
        source: RowSource,
        splits: Sequence[str],
        select: Callable[[ShardRows], Bool[np.ndarray, " rows"]],
        words: str,
    ) -> None:
        self._source, self._select, self._words = source, select, words
        self._entries = {entry.name: entry for entry in source.shards_of(splits)}
        for name, entry in self._entries.items():
            self._entries[name] = replace(entry, num_utterances=len(self.numbers(name)))
        self.num_utterances = sum(entry.num_utterances for entry in self._entries.values())

    @property
    def digest(self) -> str:
        """Names the source's content, and which of it this is."""
        content = getattr(self._source, "content_digest", None) or self._source.digest
        return f"{content} {self._words}"

    def shards_of(self, splits: Sequence[str], /) -> list[ShardEntry]:
        """The shards of the splits, with the number of these utterances that each has."""
        return [self._entries[entry.name] for entry in self._source.shards_of(splits)]

    def rows(self, shard: str, /) -> ShardRows:
        """All rows of one shard."""
        return self._source.rows(shard)

    def numbers(self, shard: str, /) -> Int64[np.ndarray, " rows"]:
        """Which rows of one shard are meant, rising."""
        return np.flatnonzero(self._select(self._source.rows(shard)))


def _is_labelled(rows: ShardRows, targets: Sequence[str], *, labelled: bool) -> Bool[np.ndarray, " rows"]:
    """True for utterances with a label of some target, or for those with none."""
    has_label = np.zeros(len(rows), bool)
    for target in targets:
        if target in rows.labels:
            has_label |= ~np.isnan(rows.labels[target])
    return has_label == labelled


def _is_of(rows: ShardRows, category: str, category_map: Mapping[str, str]) -> Bool[np.ndarray, " rows"]:
    return np.array([mapped_category(one, category_map) == category for one in rows.categories], bool)


class FullBatches:
    """Batches of one size, without end: the utterances in one random order after the other, cut where a batch is full.

    For few utterances, which ``BatchSampler`` would put into batches of even and much smaller size. Where a batch takes
    in two orders, or there are fewer utterances than places, an utterance may be in it more than once.

    Args:
        source: where the rows come from.
        splits: which of its splits.
        global_batch_size: utterances of a batch.
        bucket_batches: as of ``BatchSampler``.
        settings: its other arguments, without ``partitions``.
    """

    def __init__(
        self, source: RowSource, splits: Sequence[str], *, global_batch_size: int, bucket_batches: int, **settings: Any
    ) -> None:
        sorted_together = 1 if bucket_batches == 1 else bucket_batches * global_batch_size
        self._rows = BatchSampler(source, splits, global_batch_size=1, bucket_batches=sorted_together, **settings)
        self.largest_batch = global_batch_size
        self.num_utterances = self._rows.num_utterances
        self.steps_per_epoch = max(1, self.num_utterances // global_batch_size)
        """Unit in which steps are counted; orders do not end with it."""

        self.window_steps = max(1, self._rows.window_steps // global_batch_size)
        self.digest = f"{self._rows.digest} by {global_batch_size}"

    def global_batch(self, epoch: int, step: int, partitions: range | None = None) -> list[SampleRef]:
        """Like ``BatchSampler.global_batch``, in no order; there is one partition."""
        return [row for place in self._places(epoch, step, 1) for row in self._rows.global_batch(*place, partitions)]

    def shards_of_window(self, epoch: int, number: int, partitions: range | None = None) -> tuple[str, ...]:
        """Like ``BatchSampler.shards_of_window``."""
        first = number * self.window_steps
        count = min(self.window_steps, self.steps_per_epoch - first)
        windows = dict.fromkeys((one, row // self._rows.window_steps) for one, row in self._places(epoch, first, count))
        names = (name for window in windows for name in self._rows.shards_of_window(*window, partitions))
        return tuple(dict.fromkeys(names))

    def _places(self, epoch: int, step: int, count: int) -> Iterator[tuple[int, int]]:
        """Order and place in it of each utterance of some steps."""
        first = (epoch * self.steps_per_epoch + step) * self.largest_batch
        for number in range(first, first + count * self.largest_batch):
            yield divmod(number, self.num_utterances)


def _plans(
    rows: Sequence[tuple[RowSource, Sequence[str], int]], *, first_leads: bool, **settings: Any
) -> tuple[BatchSampler, list[BatchSampler | FullBatches]]:
    """The plan that sets the epoch, and the others, each of a source with its splits and its utterances of a batch.

    Args:
        first_leads: whether that is the first source's; or else that of the source that takes most steps.
        settings: the other arguments of ``BatchSampler``.
    """
    pairs = [(BatchSampler(one, splits, global_batch_size=size, **settings), (one, splits, size))
             for one, splits, size in rows]  # fmt: skip
    if not first_leads:
        pairs.sort(key=lambda pair: -pair[0].steps_per_epoch)  # stable
    alone = {name: value for name, value in settings.items() if name != "partitions"}
    others: list[BatchSampler | FullBatches] = []
    for plan, (one, splits, size) in pairs[1:]:
        is_full = plan.num_utterances // plan.steps_per_epoch >= size - 1 or plan.num_partitions > 1
        others.append(plan if is_full else FullBatches(one, splits, global_batch_size=size, **alone))
    return pairs[0][0], others


class PlansSideBySide:
    """A plan whose global batches are those of several others side by side; the first of them sets the epoch.

    The others begin anew as often as it takes, each time in another order, or go on in the next epoch. Like
    ``BatchSampler`` it is a pure function of epoch and step, knows nothing of ranks, and can be used by several
    threads.
    """

    def __init__(self, main: BatchSampler, *others: BatchSampler | FullBatches) -> None:
        self._main, self._others = main, others
        self.plans = (main, *others)
        self.num_utterances = sum(plan.num_utterances for plan in self.plans)
        """Different utterances; those of the others may come more or less than once in an epoch."""

        self.steps_per_epoch = main.steps_per_epoch
        self.window_steps = main.window_steps
        self.windows_per_epoch = main.windows_per_epoch
        self.num_partitions = main.num_partitions
        self.largest_batch = sum(plan.largest_batch for plan in self.plans)
        digests = " ".join(plan.digest for plan in self.plans)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()
        """Hex SHA-256; equal digests mean equal global batches at every (epoch, step)."""

    def global_batch(self, epoch: int, step: int, partitions: range | None = None) -> tuple[SampleRef, ...]:
        """Like ``BatchSampler.global_batch``."""
        rows = list(self._main.global_batch(epoch, step, partitions))
        for other in self._others:
            rows += other.global_batch(*self._place(epoch, step, other), partitions)
        return tuple(sorted(rows, key=lambda row: row.num_samples))

    def shards_of_window(self, epoch: int, number: int, partitions: range | None = None) -> tuple[str, ...]:
        """Like ``BatchSampler.shards_of_window``."""
        names = list(self._main.shards_of_window(epoch, number, partitions))
        first = number * self.window_steps
        steps = range(first, min(first + self.window_steps, self.steps_per_epoch))
        for other in self._others:
            places = (self._place(epoch, step, other) for step in steps)
            for theirs, window in dict.fromkeys((one, at // other.window_steps) for one, at in places):
                names += other.shards_of_window(theirs, window, partitions)
        return tuple(dict.fromkeys(names))

    def _place(self, epoch: int, step: int, other: BatchSampler | FullBatches) -> tuple[int, int]:
        """Epoch and step of a plan that does not set the epoch."""
        return divmod(epoch * self.steps_per_epoch + step, other.steps_per_epoch)


class MixedPlan(PlansSideBySide):
    """A plan whose every global batch has the same share of labelled utterances.

    The kind that takes more steps to come once sets the epoch; the other begins anew as often as it takes, each time in
    another order. So an utterance of the scarcer kind comes several times in an epoch.

    Args:
        source: where the rows come from.
        splits: which of its splits.
        targets: an utterance with a label of one of these is labelled.
        labelled_share: of each global batch, above 0 and below 1.
        global_batch_size: most utterances in a global batch.
        settings: the other arguments of ``BatchSampler``.

    Raises:
        ConfigError: utterances of one kind are missing, or have no place in a batch.
    """

    def __init__(
        self,
        source: RowSource,
        splits: Sequence[str],
        *,
        targets: Sequence[str],
        labelled_share: float,
        global_batch_size: int,
        **settings: Any,
    ) -> None:
        named = f"batch.labelled_share = {labelled_share:g}"
        num_labelled = round(labelled_share * global_batch_size)
        if not 2 <= num_labelled < global_batch_size:
            raise ConfigError(
                f"{named} of batch.global_batch_size = {global_batch_size} is {num_labelled}: a batch needs 2 labelled "
                "utterances for a CCC, and place for others. Change the share, or leave it out."
            )
        kinds = []
        for labelled, size in ((True, num_labelled), (False, global_batch_size - num_labelled)):
            words = f"{'with' if labelled else 'without'} labels of {' '.join(targets)}"
            rows = SelectedRows(source, splits, partial(_is_labelled, targets=tuple(targets), labelled=labelled), words)
            if not rows.num_utterances:
                kind = "no utterance has a label" if labelled else "every utterance has a label"
                raise ConfigError(f"{named}: {kind} in {', '.join(splits)}. Leave the share out.")
            kinds.append((rows, splits, size))
        main, others = _plans(kinds, first_leads=False, **settings)  # the labelled ones lead where both take as long
        super().__init__(main, *others)


def plan_of_sets(
    shards: JoinedShards, splits: Sequence[str], *, global_batch_size: int, **settings: Any
) -> PlansSideBySide:
    """A plan in whose every global batch each further shard set has its share.

    Args:
        splits: of the first set, whose utterances come once in an epoch.
        global_batch_size: most utterances in a global batch.
        settings: the other arguments of ``BatchSampler``.

    Raises:
        ConfigError: shares that leave no place to some set.
    """
    sizes = [round(one.extra.share * global_batch_size) for one in shards.extras]
    rest = global_batch_size - sum(sizes)
    if rest < 1 or min(sizes) < 1:
        shares = ", ".join(f"{one.extra.share:g}" for one in shards.extras)
        raise ConfigError(
            f"data.extra_shards: shares {shares} of batch.global_batch_size = {global_batch_size} are "
            f"{', '.join(map(str, sizes))} utterances, and leave {rest} to data.shards: must be 1 at least each. "
            "Change the shares, or take larger batches."
        )
    extras = [(one, one.extra.splits, size) for one, size in zip(shards.extras, sizes, strict=True)]
    main, others = _plans([(shards.main, splits, rest), *extras], first_leads=True, **settings)
    return PlansSideBySide(main, *others)


def balanced_plan(
    source: RowSource,
    splits: Sequence[str],
    *,
    categories: Sequence[str],
    category_map: Mapping[str, str],
    global_batch_size: int,
    **settings: Any,
) -> PlansSideBySide:
    """A plan in whose every global batch each category has as many utterances, but for one at most.

    The largest category sets the epoch. Utterances of none of the categories are not drawn.

    Args:
        categories: names after ``category_map``.
        category_map: see ``ModelConfig.category_map``.
        global_batch_size: most utterances in a global batch.
        settings: the other arguments of ``BatchSampler``.

    Raises:
        ConfigError: a category without utterances, or fewer places in a batch than categories.
    """
    num = len(categories)
    if global_batch_size < num:
        raise ConfigError(
            f"batch.balanced: a batch of batch.global_batch_size = {global_batch_size} has no place for each of {num} "
            "categories. Raise it, or leave batch.balanced out."
        )
    of_each = []
    for number, category in enumerate(categories):
        select = partial(_is_of, category=category, category_map=dict(category_map))
        rows = SelectedRows(source, splits, select, f"of category {category} by {sorted(category_map.items())}")
        if not rows.num_utterances:
            raise ConfigError(
                f"batch.balanced: no utterance of {', '.join(splits)} is of category {category!r}. Take it out of "
                "model.categories, or leave batch.balanced out."
            )
        size = global_batch_size * (number + 1) // num - global_batch_size * number // num
        of_each.append((rows, splits, size))
    main, others = _plans(of_each, first_leads=False, **settings)
    return PlansSideBySide(main, *others)
