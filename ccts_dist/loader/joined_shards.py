"""Several shard sets read as one: the first by its own names of shards, the others by names of their own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ccts_dist.errors import ConfigError
from ccts_dist.shards.format.index import ShardRows
from ccts_dist.shards.format.schema import ShardEntry
from ccts_dist.shards.shard_set import ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraSet:
    """A further shard set, and what is taken of it."""

    shard_set: ShardSet
    splits: tuple[str, ...]
    share: float
    """Share of every global batch."""


class ExtraRows:
    """The rows of a further shard set, for a plan.

    Args:
        extra: the set.
        prefix: of the names that its shards have here.
        targets: labels that its rows shall have, NaN where the set lacks them.
    """

    def __init__(self, extra: ExtraSet, prefix: str, targets: Sequence[str]) -> None:
        self.extra, self.prefix, self._targets = extra, prefix, tuple(targets)

    @property
    def digest(self) -> str:
        """Names the set's content."""
        return self.extra.shard_set.content_digest

    def shards_of(self, splits: Sequence[str], /) -> list[ShardEntry]:
        """The shards of some splits, by their names here."""
        return [replace(entry, name=self.prefix + entry.name) for entry in self.extra.shard_set.shards_of(splits)]

    def rows(self, shard: str, /) -> ShardRows:
        """The index rows of one shard."""
        own = self.extra.shard_set.rows(shard.removeprefix(self.prefix))
        unknown = np.full(len(own), np.nan)
        return replace(own, shard=shard, labels={name: own.labels.get(name, unknown) for name in self._targets})


class JoinedShards(ShardSet):
    """A shard set joined with others for training. What it states of itself is the first one's.

    Raises:
        ConfigError: a split that a set does not have.
    """

    def __init__(self, main: ShardSet, extras: Iterable[ExtraSet]) -> None:
        extras = tuple(extras)
        categories = {
            name for one in (main, *(extra.shard_set for extra in extras)) for name in one.manifest.categories
        }
        super().__init__(main.store, replace(main.manifest, categories=tuple(sorted(categories))), main.digest)
        self.main = main
        self.extras = tuple(
            ExtraRows(extra, f"extra_shards[{number}]:", main.manifest.targets) for number, extra in enumerate(extras)
        )
        for one in self.extras:
            one.shards_of(one.extra.splits)

    def shards_of(self, splits: Sequence[str]) -> Sequence[ShardEntry]:
        """The shards of some splits of the first set, and all that are taken of the others."""
        others = [entry for one in self.extras for entry in one.shards_of(one.extra.splits)]
        return [*super().shards_of(splits), *others]

    def rows(self, shard: str) -> ShardRows:
        """Rows, as of any shard set."""
        extra = self._extra_of(shard)
        return super().rows(shard) if extra is None else extra.rows(shard)

    def prefetch(self, shards: Sequence[str]) -> None:
        """Prefetch, as of any shard set."""
        super().prefetch([shard for shard in shards if self._extra_of(shard) is None])
        for extra in self.extras:
            extra.extra.shard_set.prefetch(self._of(extra, shards))

    def bytes_to_fetch(self, shards: Iterable[str]) -> int:
        """Bytes, as of any shard set."""
        shards = list(shards)
        own = super().bytes_to_fetch(shard for shard in shards if self._extra_of(shard) is None)
        return own + sum(one.extra.shard_set.bytes_to_fetch(self._of(one, shards)) for one in self.extras)

    def member(self, rows: ShardRows, row: int, member: str) -> bytes:
        """Member, as of any shard set."""
        extra = self._extra_of(rows.shard)
        if extra is None:
            return super().member(rows, row, member)
        return extra.extra.shard_set.member(replace(rows, shard=rows.shard.removeprefix(extra.prefix)), row, member)

    def check_names(self, targets: Sequence[str], categories: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: a set that has none of these.
        """
        for number, one in enumerate(self.extras):
            manifest = one.extra.shard_set.manifest
            if not {*targets} & {*manifest.targets} and not {*categories} & {*manifest.categories}:
                raise ConfigError(
                    f"data.extra_shards[{number}].shards = {str(one.extra.shard_set.root)!r}: has labels of "
                    f"{', '.join(manifest.targets)}, and the model learns {', '.join((*targets, *categories))}. Leave "
                    "it out, or change model.targets."
                )

    def _extra_of(self, shard: str) -> ExtraRows | None:
        return next((one for one in self.extras if shard.startswith(one.prefix)), None)

    @staticmethod
    def _of(extra: ExtraRows, shards: Sequence[str]) -> list[str]:
        return [shard.removeprefix(extra.prefix) for shard in shards if shard.startswith(extra.prefix)]
