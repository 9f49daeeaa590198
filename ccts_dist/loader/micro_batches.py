"""How a global batch is cut into one part per rank and micro-batch, with nearly equal padded length.

By count the number of micro-batches is given. By seconds it is chosen for each batch, so that the step is shortest:
more micro-batches mean less padding, and each costs something whatever it is given.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ccts_dist.errors import ConfigError
from ccts_dist.loader.sampler import SampleRef
from ccts_dist.records import SAMPLE_RATE_HZ

_WORSE_IN_A_ROW = 4


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The utterances of one forward pass on one rank, longest first."""

    rows: tuple[SampleRef, ...]
    counts: bool = True
    """False: there was nothing left for this part; its one row is a copy of the batch's shortest, at weight 0."""

    @property
    def padded_samples(self) -> int:
        """Samples of the padded audio."""
        return len(self.rows) * self.rows[0].num_samples

    @property
    def real_samples(self) -> int:
        """Samples that are neither padding nor a copy."""
        return sum(row.num_samples for row in self.rows) if self.counts else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondsLimit:
    """Limits of micro-batches that are cut by seconds; in samples of padded audio."""

    micro: int
    """Most utterances."""

    max_samples: int
    """Most samples, padding included."""

    overhead_samples: int
    """Samples that take as long as what a forward and backward pass costs whatever it is given; at least 1."""

    padded: Callable[[int], int] = int
    """Samples that an utterance of so many may have in a micro-batch; more of it for a longer one, never less."""


def split_global_batch(
    rows: Sequence[SampleRef], num_ranks: int, num_micro_batches: int, micro: int, padded: Callable[[int], int] = int
) -> list[list[MicroBatch]]:
    """Cut a global batch into ``num_micro_batches`` lists of ``num_ranks`` parts, none above ``micro`` utterances.

    The parts are runs of the batch sorted by duration, chosen so that the largest padded part is as small as runs
    allow; parts of similar cost run side by side in one micro-batch of each rank. A part is empty, and gets the copy,
    only when there are fewer utterances than parts.

    Args:
        padded: as ``SecondsLimit`` has it.

    Raises:
        ConfigError: more utterances than the parts can hold.
    """
    num_parts = num_ranks * num_micro_batches
    if not 0 < len(rows) <= num_parts * micro:
        raise ConfigError(
            f"a global batch of {len(rows)} utterances does not fit {num_micro_batches} micro-batches on {num_ranks} "
            f"ranks of at most batch.micro_batch_size={micro}. Raise that, or the number of micro-batches."
        )
    longest_first = sorted(rows, key=lambda row: -row.num_samples)
    parts, start = [], 0
    for size in _sizes([padded(row.num_samples) for row in longest_first], num_parts, micro):
        parts.append(MicroBatch(tuple(longest_first[start : start + size])))
        start += size
    parts.sort(key=lambda part: -part.padded_samples)
    parts += [MicroBatch((longest_first[-1],), counts=False)] * (num_parts - len(parts))
    return [parts[start : start + num_ranks] for start in range(0, num_parts, num_ranks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """The micro-batches of some steps."""

    largest: MicroBatch
    """With the most padded audio."""

    largest_step: tuple[MicroBatch, ...]
    """One rank's micro-batches of the step that gives a rank the most padded audio, in their order."""

    longest_samples: int
    """Length of the longest utterance."""

    most_utterances: int
    """Size of the micro-batch that has the most of them."""

    fewest_micro_batches: int
    most_micro_batches: int
    padding: float
    """Share of padding in the audio of all."""


def sum_up(steps: Iterable[Sequence[Sequence[MicroBatch]]]) -> Cuts:
    """Some steps by micro-batch and rank, of which there must be one."""
    largest: list[MicroBatch] = []
    longest = padded = real = most = 0
    of_ranks: list[tuple[MicroBatch, ...]] = []
    nums_micro_batches: list[int] = []
    for micro_batches in steps:
        parts = [part for parts in micro_batches for part in parts]
        longest = max(longest, *(part.rows[0].num_samples for part in parts))
        most = max(most, *(len(part.rows) for part in parts))
        padded += _padded(parts)
        real += sum(part.real_samples for part in parts)
        nums_micro_batches.append(len(micro_batches))
        largest.append(max(parts, key=lambda part: part.padded_samples))
        of_ranks.append(max(zip(*micro_batches, strict=True), key=_padded))
    return Cuts(
        largest=max(largest, key=lambda part: part.padded_samples),
        largest_step=max(of_ranks, key=_padded),
        longest_samples=longest,
        most_utterances=most,
        fewest_micro_batches=min(nums_micro_batches),
        most_micro_batches=max(nums_micro_batches),
        padding=1.0 - real / padded,
    )


def _padded(parts: Iterable[MicroBatch]) -> int:
    return sum(part.padded_samples for part in parts)


def check_length(num_samples: int, max_samples: int) -> None:
    """Raises: ConfigError: an utterance takes more than a micro-batch cut by seconds may have."""
    if num_samples > max_samples:
        seconds, most = num_samples / SAMPLE_RATE_HZ, max_samples / SAMPLE_RATE_HZ
        raise ConfigError(
            f"batch.micro_batch_seconds = {most:g}: the longest training utterance takes {seconds:.2f} s. Raise it to "
            f"at least {math.ceil(100 * seconds) / 100:g}, or cut longer utterances by data.max_duration_s."
        )


def choose_num_micro_batches(shares: Sequence[Sequence[SampleRef]], num_ranks: int, limit: SecondsLimit) -> int:
    """The number of micro-batches that makes a step shortest, among those whose parts keep the limits.

    Ranks wait for each other in every micro-batch, which takes as long as its largest part.

    Args:
        shares: the utterances of each node that reads its own; one for all where nodes share.
        num_ranks: of each share.

    Raises:
        ConfigError: an utterance is longer than the limit.
    """
    lengths = [sorted((limit.padded(row.num_samples) for row in rows), reverse=True) for rows in shares]
    num_micro_batches = max(_fewest_micro_batches(share, num_ranks, limit) for share in lengths)
    real = max(sum(share) for share in lengths) / num_ranks
    best, best_cost, worse = num_micro_batches, _cost(lengths, num_ranks, num_micro_batches, limit), 0
    most = max(num_micro_batches, -(-max(len(share) for share in lengths) // num_ranks))
    # The padding that one more micro-batch saves falls with their number, so that a few worse ones in a row are the
    # end.
    while (
        num_micro_batches < most
        and worse < _WORSE_IN_A_ROW
        and (num_micro_batches + 1) * limit.overhead_samples + real < best_cost
    ):
        num_micro_batches += 1
        cost = _cost(lengths, num_ranks, num_micro_batches, limit)
        worse += 1
        if cost < best_cost:
            best, best_cost, worse = num_micro_batches, cost, 0
    return best


def _fewest_micro_batches(lengths: Sequence[int], num_ranks: int, limit: SecondsLimit) -> int:
    check_length(lengths[0], limit.max_samples)
    runs = start = 0
    while start < len(lengths):
        start += max(1, min(limit.micro, limit.max_samples // max(1, lengths[start])))
        runs += 1
    return -(-runs // num_ranks)


def _cost(shares: Sequence[Sequence[int]], num_ranks: int, num_micro_batches: int, limit: SecondsLimit) -> int:
    """Samples of padded audio that take as long as the step."""
    slowest = [0] * num_micro_batches
    for lengths in shares:
        padded, start = [], 0
        for size in _sizes(lengths, num_ranks * num_micro_batches, limit.micro):
            padded.append(size * lengths[start])
            start += size
        padded.sort(reverse=True)
        slowest = [max(pair) for pair in zip(slowest, _firsts(padded, num_ranks, num_micro_batches), strict=True)]
    return sum(slowest) + num_micro_batches * limit.overhead_samples


def _firsts(padded: Sequence[int], num_ranks: int, num_micro_batches: int) -> list[int]:
    """The largest part of each micro-batch; 0 where one has none but copies."""
    return [padded[first] if first < len(padded) else 0 for first in range(0, num_ranks * num_micro_batches, num_ranks)]


def _sizes(lengths: Sequence[int], num_parts: int, micro: int) -> list[int]:
    """Sizes of the runs of ``lengths``, which fall, that minimise the largest ``size * first length``."""
    low = max(lengths[0], -(-sum(lengths) // num_parts))  # no cut can do better
    high = max(low, lengths[0] * min(micro, len(lengths)))  # any cut does as well
    while low < high:
        limit = (low + high) // 2
        if _runs(lengths, num_parts, micro, limit) is None:
            low = limit + 1
        else:
            high = limit
    sizes = _runs(lengths, num_parts, micro, low)
    assert sizes is not None, "runs of micro utterances fit whenever the batch does"
    return sizes


def _runs(lengths: Sequence[int], num_parts: int, micro: int, limit: int) -> list[int] | None:
    """Take the longest run within ``limit`` again and again; None when that needs more than ``num_parts`` runs.

    Each run leaves one utterance for every later part, which keeps parts from being empty and never costs more.
    """
    sizes, start = [], 0
    for later in range(num_parts - 1, -1, -1):
        left = len(lengths) - start
        if left == 0:
            break
        size = max(1, min(micro, limit // max(1, lengths[start]), left - later))
        sizes.append(size)
        start += size
    return sizes if start == len(lengths) else None
