"""Skipped parts of a training, and when they are too many: damaged utterances, steps without a finite loss."""

from collections.abc import Sequence

from ccts_dist.batches import StepBatches
from ccts_dist.config import RunConfig
from ccts_dist.distributed import gather_objects
from ccts_dist.errors import ShardError, TrainingError
from ccts_dist.progress import log
from ccts_dist.train.checkpoints.checkpoint import TrainState

_MOST_KEYS = 256
"""Most keys of a batch in an error message: more are a screen that nobody reads."""


def give_up(state: TrainState, batches: StepBatches) -> None:
    """Every rank must call it, with its part of the last batch.

    Raises:
        TrainingError: on all ranks alike, with the keys of the global batch.
    """
    own = [
        (key, w) for batch in batches.micro_batches for key, w in zip(batch.keys, batch.weight.tolist(), strict=True)
    ]
    keys = sorted(key for theirs in gather_objects([key for key, w in own if w > 0]) for key in theirs)
    shown = ", ".join(keys[:_MOST_KEYS]) + (f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else "")
    raise TrainingError(
        f"step {state.step}: {state.skipped_in_a_row} steps in a row without a finite loss and gradient "
        f"(train.nonfinite_patience); weights and optimizer are as before them. Look at the last batch, lower "
        f"optim.learning_rate, or set optim.max_grad_norm. The last batch: {shown}"
    )


def count_damaged(state: TrainState, num_damaged: int, batches: StepBatches, run: RunConfig, *, visible: bool) -> None:
    """Report which damaged utterances a step omitted; every rank knows that there are some, and all stop together.

    Raises:
        ShardError: on all ranks alike, when the epoch has more than ``data.max_corrupt``.
    """
    if not num_damaged:
        return
    state.epoch_sums["damaged"] = state.epoch_sums.get("damaged", 0.0) + num_damaged
    own = [words for batch in batches.micro_batches for words in batch.damaged]
    damaged = [words for theirs in gather_objects(own) for words in theirs]
    allow_damaged(damaged, int(state.epoch_sums["damaged"]), f"epoch {state.epoch + 1}", run, visible=visible)


def allow_damaged(damaged: Sequence[str], count: int, where: str, run: RunConfig, *, visible: bool) -> None:
    """Report which utterances were skipped.

    Args:
        damaged: in words, what was wrong with each.
        count: how many there were so far.
        where: that they are counted over.
        visible: on rank 0.

    Raises:
        ShardError: on all ranks alike, when more than ``data.max_corrupt`` were skipped.
    """
    for words in damaged:
        log(f"skipped: {words}", visible=visible)
    limit = run.data.max_corrupt
    if count > limit:
        raise ShardError(
            f"{where}: {count} damaged utterances, and data.max_corrupt={limit}. Run shards/check.py on "
            f"{run.data.shards}, and mend what it names. The last: {damaged[-1]}"
        )
