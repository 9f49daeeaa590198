"""The tables [[data.extra_shards]] of a run file."""

from dataclasses import dataclass
from typing import Annotated

from ccts_dist.config.ranges import Between


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraShardsConfig:
    """Further shard set that is trained on besides ``data.shards``, which alone is validated and tested on. Its labels
    are on 0..1 of its own scale; a target or category that it lacks is unknown there."""

    shards: str
    """Folder or address of the shard set."""

    splits: tuple[str, ...] = ("Train",)
    """Splits that are trained on."""

    share: Annotated[float, Between(0.001, 0.999)]
    """Share of every global batch that comes from this set. An epoch has each training utterance of ``data.shards``
    once. This set begins anew as often as it takes, in another order each time, or goes on in the next epoch where it
    stopped."""
