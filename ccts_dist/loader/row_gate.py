"""Gates that decide by an utterance's key or its transcript's confidence, and not by the teacher's residuals.

Each decision is a function of the run file and the utterance alone: neither epoch, batch, rank nor thread matters.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from ccts_dist.config.schema import DistillConfig
from ccts_dist.errors import ConfigError
from ccts_dist.limits import read_limited
from ccts_dist.loader.decode import read_confidence
from ccts_dist.process.seeds import derive_seed
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.shard_set import ShardSet


@runtime_checkable
class RowGate(Protocol):
    """A gate over whole utterances."""

    def admits(self, shards: ShardSet, table: ShardRows, row: int) -> bool:
        """Decision on one utterance: True if it is distilled.

        Args:
            shards: where it lies.
            table: index rows of its shard.
            row: which of them.

        Raises:
            ShardError: the member that the decision needs is damaged.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomGate:
    """Rejects each utterance with one probability, by a hash of seed and key."""

    share: float
    """Probability of rejection, 0..1."""

    seed: int

    def admits(self, shards: ShardSet, table: ShardRows, row: int) -> bool:
        """See ``RowGate``; reads nothing."""
        return uniform(self.seed, table.keys[row]) >= self.share


def uniform(seed: int, key: str) -> float:
    """A number on 0..1 for each seed and key, below 1; equally likely everywhere."""
    return (derive_seed("gate", seed, key) >> 10) / 2**53  # 53 bits: as many as a float has


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysGate:
    """Admits the utterances whose keys are listed."""

    keys: frozenset[str] = field(repr=False)
    digest: str
    """SHA-256 of the sorted keys."""

    def admits(self, shards: ShardSet, table: ShardRows, row: int) -> bool:
        """See ``RowGate``; reads nothing."""
        return table.keys[row] in self.keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceGate:
    """Admits utterances whose transcript was recognized with at least some confidence, or by no recognizer."""

    least: float
    """0..1."""

    def admits(self, shards: ShardSet, table: ShardRows, row: int) -> bool:
        """See ``RowGate``; reads the utterance's json member."""
        confidence = read_confidence(shards, table, row)
        return confidence is None or confidence >= self.least


def read_keys_gate(path: str) -> KeysGate:
    """The gate of a text file with one key a line, in UTF-8; empty lines and the order have no meaning.

    Raises:
        ConfigError: no such file, or no key in it.
    """
    named = f"distill.gate_keys = {path!r}"
    try:
        lines = read_limited(Path(path), "file of keys").decode("utf-8-sig").split("\n")
    except (OSError, UnicodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{named}: cannot be read: {reason}. Name a text file with one key a line.") from error
    keys = frozenset(line.removesuffix("\r") for line in lines) - {""}
    if not keys:
        raise ConfigError(f'{named}: has no key. Write one a line, or set distill.gate = "none".')
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    return KeysGate(keys=keys, digest=digest)


def row_gate_of(distill: DistillConfig | None, seed: int) -> RowGate | None:
    """The gate that a run file names, if it is of this kind.

    Args:
        distill: with a resolved ``reject_fraction``.
        seed: the run's.

    Raises:
        ConfigError: see ``read_keys_gate``.
    """
    if distill is None:
        return None
    if distill.gate == "random":
        return RandomGate(share=distill.reject_fraction, seed=seed)
    if distill.gate == "keys":
        return read_keys_gate(distill.gate_keys)
    if distill.gate == "confidence":
        return ConfidenceGate(least=distill.min_confidence or 0.0)
    return None
