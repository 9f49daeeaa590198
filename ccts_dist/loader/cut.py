"""How a global batch is cut into one part per rank and pass, with nearly equal padded length."""

from collections.abc import Sequence
from dataclasses import dataclass

from ccts_dist.errors import ConfigError
from ccts_dist.loader.plan import Row


@dataclass(frozen=True, slots=True)
class Part:
    """The utterances of one forward pass on one rank, longest first."""

    rows: tuple[Row, ...]
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


def cut(rows: Sequence[Row], num_ranks: int, passes: int, micro: int) -> list[list[Part]]:
    """Cut a global batch into ``passes`` lists of ``num_ranks`` parts, none above ``micro`` utterances.

    The parts are runs of the batch sorted by duration, chosen so that the largest padded part is as small as runs
    allow; parts of similar cost run side by side in one pass. A part is empty, and gets the copy, only when there are
    fewer utterances than parts.

    Raises:
        ConfigError: more utterances than the parts can hold.
    """
    num_parts = num_ranks * passes
    if not 0 < len(rows) <= num_parts * micro:
        raise ConfigError(
            f"a global batch of {len(rows)} utterances does not fit {passes} passes on {num_ranks} ranks of at most "
            f"batch.micro_utterances={micro}. Raise batch.micro_utterances or the number of passes."
        )
    longest_first = sorted(rows, key=lambda row: -row.num_samples)
    parts, start = [], 0
    for size in _sizes([row.num_samples for row in longest_first], num_parts, micro):
        parts.append(Part(tuple(longest_first[start : start + size])))
        start += size
    parts.sort(key=lambda part: -part.padded_samples)
    parts += [Part((longest_first[-1],), counts=False)] * (num_parts - len(parts))
    return [parts[start : start + num_ranks] for start in range(0, num_parts, num_ranks)]


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
