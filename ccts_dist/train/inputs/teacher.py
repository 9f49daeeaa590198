"""The cached teacher of a run, and what is distilled of it."""

import numpy as np
import torch

from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import TeacherError
from ccts_dist.losses.total import DistillTerms
from ccts_dist.records import Condition
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache, open_merged_teacher, open_teacher_cache
from ccts_dist.train.inputs.shards import shard_cache


def open_teacher(run: RunConfig, shard_set: ShardSet, ranks: Ranks) -> TeacherCache | None:
    """The teacher cache, once it fits the model, the splits and the shards; None without distillation.

    Args:
        ranks: each of which checks the outputs of its part of the shards.

    Raises:
        TeacherError: on this rank alone: other targets, another embedding size, a condition fitted on held-out labels,
            or outputs that are not finite.
    """
    if run.distill is None:
        return None
    if run.data.teacher_cache == "merged":
        teacher = open_merged_teacher(shard_set)
    else:
        teacher = open_teacher_cache(run.data.teacher_cache, shard_set, **shard_cache(run))
    if tuple(teacher.targets) != run.model.targets:
        raise TeacherError(
            f"data.teacher_cache = {run.data.teacher_cache!r} predicts {list(teacher.targets)}, model.targets is "
            f"{list(run.model.targets)}: must be the same, in this order. Change model.targets or the teacher."
        )
    if teacher.embedding_size != run.model.embedding_dim:
        raise TeacherError(
            f"data.teacher_cache = {run.data.teacher_cache!r} has embeddings of {teacher.embedding_size}, "
            f"model.embedding_dim is {run.model.embedding_dim}: must be equal. Set model.embedding_dim = "
            f"{teacher.embedding_size}."
        )
    _check_fit(run, teacher, shard_set)
    shards = shard_set.shards_of(run.data.train_splits)
    teacher.check_outputs([shard.name for shard in shards][ranks.rank :: ranks.num_ranks])
    return teacher


def _check_fit(run: RunConfig, teacher: TeacherCache, shard_set: ShardSet) -> None:
    """Refuse a condition that knows labels of utterances which the run does not train on.

    Raises:
        TeacherError: it names other splits than those trained on, or more labels than these have utterances.
    """
    condition = teacher.condition
    held_out = set(condition.splits) - set(run.data.train_splits)
    if held_out:
        raise TeacherError(
            f"data.teacher_cache = {run.data.teacher_cache!r}: its condition was fitted on "
            f"{sorted(held_out)[0]!r}, which is not in data.train_splits = {list(run.data.train_splits)}. Fit "
            "the condition on training splits only."
        )
    # What the manifest reports, without reading the index: rows beyond those of its splits do not pass, whatever it
    # states.
    totals = shard_set.manifest.splits
    num_utterances = sum(totals[split].num_utterances for split in condition.splits if split in totals)
    for target, num_rows in zip(condition.targets, condition.num_rows, strict=True):
        if num_rows > num_utterances:
            raise TeacherError(
                f"data.teacher_cache = {run.data.teacher_cache!r}: its condition was fitted on {num_rows} "
                f"labels of {target!r}, and {', '.join(condition.splits)} has {num_utterances} utterances: "
                "others are in it. Fit the condition on training splits only."
            )


def distill_terms(run: RunConfig, teacher: TeacherCache | None, condition: Condition | None) -> DistillTerms | None:
    """The distillation terms of a resolved run; None without a teacher.

    Args:
        condition: that the gate compares residuals with.
    """
    if run.distill is None or teacher is None or condition is None:
        return None
    units = {}
    if run.distill.standardize:
        units = {
            "embedding_mean": torch.from_numpy(np.asarray(teacher.embedding_mean, dtype=np.float64)),
            "embedding_std": torch.from_numpy(np.asarray(teacher.embedding_std, dtype=np.float64)),
        }
    return DistillTerms(
        condition=condition,
        embedding_weight=run.distill.embedding_weight,
        embedding_loss=run.distill.embedding_loss,
        prediction_weight=run.distill.prediction_weight,
        prediction_loss=run.distill.prediction_loss,
        gate=run.distill.gate,
        threshold=run.distill.threshold_or_default,
        **units,
    )
