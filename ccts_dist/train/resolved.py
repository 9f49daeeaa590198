"""The values that a run uses where its run file leaves them open."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ccts_dist.config import RunConfig, speech_tables
from ccts_dist.config.schema import DEFAULT_THRESHOLD, RESIDUAL_GATES, THRESHOLD_GATES, DistillConfig
from ccts_dist.distributed import Ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import pad_multiple_s
from ccts_dist.loader.micro_batches import Cuts
from ccts_dist.losses.gate import gated_on
from ccts_dist.model.emotion import EmotionModel
from ccts_dist.records import Condition
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.shards.teacher_cache import TeacherCache
from ccts_dist.teacher.robust import robust_condition
from ccts_dist.teacher.threshold import rejected_fraction, threshold_rejecting
from ccts_dist.train.devices import peak_tflops
from ccts_dist.train.zero.partitioning import read_partitioning

SAME_THRESHOLD = 1e-6
"""Relative difference of thresholds up to which they are one: residuals are float32, and machines round differently."""


def target_weights(run: RunConfig) -> tuple[float, ...]:
    """Alpha of each target; equal shares that sum to 1 unless the run file sets another."""
    return run.loss.target_weights or (1 / max(1, len(run.model.targets)),) * len(run.model.targets)


def resolved(run: RunConfig, *, threshold: float | None = None, share: float | None = None) -> RunConfig:
    """The run with every value that it uses and that a run file can hold; resolving it again changes nothing.

    Args:
        run: as it was asked for.
        threshold: the one that ``distill.reject_fraction`` gives, if it is known.
        share: of rejection by a random gate whose run file leaves it open, if it is known.

    Raises:
        ConfigError: the run file has another threshold beside ``distill.reject_fraction``.
    """
    run = replace(
        run,
        data=replace(run.data, pad_multiple_s=pad_multiple_s(run.data)),
        loss=replace(run.loss, target_weights=target_weights(run)),
    )
    distill = run.distill
    if distill is None:
        return run
    if distill.gate == "random" and share is not None:
        return replace(run, distill=replace(distill, threshold=None, reject_fraction=share))
    if distill.gate not in THRESHOLD_GATES:
        return replace(run, distill=replace(distill, threshold=distill.threshold if _is_open(distill) else None))
    given = distill.threshold
    if threshold is not None and given is not None and not math.isclose(given, threshold, rel_tol=SAME_THRESHOLD):
        raise ConfigError(
            f"distill.reject_fraction = {distill.reject_fraction} gives the threshold {threshold:.6g}, and "
            f"distill.threshold = {given:.6g} is another one. Leave one of the two out of the run file."
        )
    if given is None:
        given = threshold if distill.reject_fraction else DEFAULT_THRESHOLD
    return replace(run, distill=replace(distill, threshold=given))


def _is_open(distill: DistillConfig) -> bool:
    """True if a random gate's share is still to be found."""
    return distill.gate == "random" and not distill.reject_fraction


def resolved_on_ranks(
    run: RunConfig, teacher: TeacherCache | None, shard_set: ShardSet, ranks: Ranks
) -> tuple[RunConfig, Condition | None]:
    """Like ``resolved``, with what is found from the teacher's cache; every rank must call it.

    Args:
        teacher: the run's, if it has one.
        shard_set: whose labels are compared.
        ranks: those among which the reading is shared, which are one where a run is only checked.

    Returns:
        The run, with the threshold or the share of rejection that its gate uses; and the condition that the gate
        compares with: the cache's own, or without outliers, infinitely wide in targets that the gate does not look at.
        None without a teacher.

    Raises:
        ConfigError: on all ranks alike: the run file has another threshold beside ``distill.reject_fraction``.
        TeacherError: likewise: see ``threshold_rejecting`` and ``robust_condition``.
    """
    distill = run.distill
    if teacher is None or distill is None:
        return resolved(run), None
    splits = run.data.train_splits
    reading: dict[str, Any] = {"ranks": ranks, "skip_damaged": run.data.on_corrupt == "skip"}
    condition = teacher.condition
    if distill.residual_scale == "robust" and (distill.gate in RESIDUAL_GATES or _is_open(distill)):
        condition = robust_condition(teacher, shard_set, splits, **reading)
    condition = gated_on(condition, distill.gate_targets)
    reading["condition"] = condition
    if _is_open(distill):
        return resolved(
            run, share=rejected_fraction(distill.threshold_or_default, teacher, shard_set, splits, **reading)
        ), condition
    if distill.reject_fraction and distill.gate in THRESHOLD_GATES:
        found = threshold_rejecting(distill.reject_fraction, teacher, shard_set, splits, **reading)
        return resolved(run, threshold=found), condition
    return resolved(run), condition


def resolved_values(
    run: RunConfig,
    model: EmotionModel,
    *,
    cuts: Cuts,
    largest_batch: int,
    vocabulary_size: int | None,
    total_steps: int,
    forward_rounds: str,
    learning_rates: Mapping[str, float],
    device: torch.device,
    ds_config: Mapping[str, Any],
    num_ranks: int,
    condition: Condition | None = None,
) -> dict[str, Any]:
    """By dotted key what the run file leaves open: what ``resolved`` fills in, and what follows from model and machine.

    Plain values, for the tracker, the summary and the model's description.

    Args:
        run: resolved.
        model: built, and not yet taken apart by an engine.
        cuts: of the training batches into micro-batches.
        largest_batch: most utterances of a step; sizes differ by at most one.
        vocabulary_size: of the tokenizer; None without a text branch.
        total_steps: of the whole training.
        forward_rounds: the decision in words; "" where each step has one micro-batch.
        learning_rates: of each parameter group, at their highest.
        device: of this rank.
        ds_config: as read from ``train.deepspeed``.
        num_ranks: that train.
        condition: that the gate compares with.
    """
    do_normalize = (model.encoder_configs.do_normalize, *model.encoder_configs.extra_do_normalize)
    peak = peak_tflops(device, run.train.precision, override=run.train.peak_tflops)
    values = {
        "batch.largest_global_batch": largest_batch,
        "batch.micro_batches": [cuts.fewest_micro_batches, cuts.most_micro_batches],  # of a step, on each rank
        "batch.forward_rounds": forward_rounds or "one round: one micro-batch, or a loss for each",
        "data.pad_multiple_s": run.data.pad_multiple_s,
        "loss.target_weights": list(run.loss.target_weights),
        **{
            f"{table}.do_normalize": on
            for (table, speech), on in zip(speech_tables(run.model).items(), do_normalize, strict=False)
            if speech.encoder != "filterbank"
        },
        **{f"optim.lr_{name}": rate for name, rate in learning_rates.items()},
        "train.total_steps": total_steps,
        "train.zero_stage": read_partitioning(ds_config).stage,
        "train.device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "train.num_ranks": num_ranks,
    }
    if vocabulary_size is not None:
        values["model.text.vocab_size"] = vocabulary_size
    if peak:
        values["train.peak_tflops"] = peak
    return values | _gate_values(run, condition)


def _gate_values(run: RunConfig, condition: Condition | None) -> dict[str, Any]:
    """The gate's threshold, share and robust fit, as far as it has them."""
    values: dict[str, Any] = {}
    if run.distill is not None and run.distill.threshold is not None:
        values["distill.threshold"] = run.distill.threshold
    if run.distill is not None and run.distill.gate == "random":
        values["distill.reject_fraction"] = run.distill.reject_fraction
    gate = gate_of(run, condition) or {}
    return values | {f"distill.robust_{name}": numbers for name, numbers in gate.get("fit", {}).items()}


def gate_of(run: RunConfig, condition: Condition | None = None) -> dict[str, Any] | None:
    """The gate of a resolved run, as model folders keep it; None without distillation.

    Args:
        condition: that the gate compares with, kept where it is not the teacher cache's own.
    """
    distill = run.distill
    if distill is None:
        return None
    gate: dict[str, Any] = {
        "gate": distill.gate,
        "threshold": distill.threshold,
        "reject_fraction": distill.reject_fraction,
    }
    if distill.gate == "random":
        gate["seed"] = run.seed
    if distill.min_confidence is not None:
        gate["min_confidence"] = distill.min_confidence
    if distill.gate in RESIDUAL_GATES and distill.gate_targets:
        gate["gate_targets"] = list(distill.gate_targets)
    if distill.gate in RESIDUAL_GATES and distill.residual_scale == "robust" and condition is not None:
        gate["residual_scale"] = distill.residual_scale
        gate["fit"] = fit_values(condition)
    return gate


def fit_values(condition: Condition) -> dict[str, list[float | None]]:
    """w, b and residual_std of each target in plain numbers; None for one that is infinite."""
    residual_std = [one if math.isfinite(one) else None for one in condition.residual_std]
    return {"w": list(condition.w), "b": list(condition.b), "residual_std": residual_std}
