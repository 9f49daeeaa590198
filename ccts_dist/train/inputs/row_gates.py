"""A run's gate that decides by keys or transcripts, checked against the training splits."""

import torch

from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks, gather_objects, run_on_all_ranks, sum_over_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.row_gate import KeysGate, RandomGate, RowGate, row_gate_of
from ccts_dist.shards.shard_set import ShardSet


def open_row_gate(run: RunConfig, shard_set: ShardSet, ranks: Ranks) -> tuple[RowGate | None, str]:
    """The gate, None where residuals decide; and what it does in words. Every rank must call it.

    Args:
        run: resolved.
        shard_set: of the training splits.
        ranks: those among which the index is read.

    Raises:
        ConfigError: on all ranks alike: a file of keys that cannot be read, that differs between ranks, or that names
            no training utterance.
        ShardError: likewise: a shard's index cannot be read.
    """
    gate = run_on_all_ranks(lambda: row_gate_of(run.distill, run.seed))
    if isinstance(gate, KeysGate):
        return gate, _checked_keys(gate, run, shard_set, ranks)
    if isinstance(gate, RandomGate):
        return gate, f"random: each utterance rejected with probability {gate.share:.4f}"
    if gate is not None and run.distill is not None:
        return gate, f"transcripts recognized with a confidence of at least {run.distill.min_confidence:g}"
    return None, ""


def _checked_keys(gate: KeysGate, run: RunConfig, shard_set: ShardSet, ranks: Ranks) -> str:
    assert run.distill is not None
    named = f"distill.gate_keys = {run.distill.gate_keys!r}"
    if len(set(gather_objects(gate.digest))) > 1:
        raise ConfigError(
            f"{named}: ranks do not see the same keys there. Name a file on storage that all ranks share."
        )
    shards = shard_set.shards_of(run.data.train_splits)
    own = shards[ranks.rank :: ranks.num_ranks]
    count = run_on_all_ranks(lambda: sum(key in gate.keys for shard in own for key in shard_set.rows(shard.name).keys))
    admitted = int(sum_over_ranks(torch.tensor([float(count)], dtype=torch.float64)))
    total = sum(shard.num_utterances for shard in shards)
    splits = ", ".join(run.data.train_splits)
    if admitted == 0:
        raise ConfigError(
            f"{named}: none of its {len(gate.keys):,} keys is one of the {total:,} utterances of {splits}. Write keys "
            "as the shards have them."
        )
    return f"keys: {admitted:,} of {total:,} utterances of {splits} are distilled"
