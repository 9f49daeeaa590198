"""Rules of the training settings, the distillation, and the model's input that no single annotation can state."""

import math

from ccts_dist.config.model_rules import cached_branches, speech_tables
from ccts_dist.config.schema import (
    DEFAULT_THRESHOLD,
    RESIDUAL_GATES,
    THRESHOLD_GATES,
    BatchConfig,
    DistillConfig,
    RunConfig,
)
from ccts_dist.errors import ConfigError

_SHORTEST_S = 0.025
"""The first frame of HuBERT and similar encoders."""

_WARMS_UP = ("constant", "linear", "cosine")


def check_schedule(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for a warm-up of a schedule that has none."""
    optim = run.optim
    if optim.warmup_steps and optim.lr_scheduler not in _WARMS_UP:
        raise ConfigError(
            f"{source}: optim.warmup_steps = {optim.warmup_steps} with optim.lr_scheduler = "
            f"{optim.lr_scheduler!r}: only {', '.join(_WARMS_UP)} warm up. Set it to 0, or change the schedule."
        )


def check_profile(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for steps to profile that are no first and last one."""
    steps = run.train.profile
    if steps and (len(steps) != 2 or steps[0] > steps[1]):
        raise ConfigError(
            f"{source}: train.profile = {list(steps)}: must be the first and the last step to record, the first not "
            "above the last, counted from 1. Write for example [50, 55], or leave it out."
        )


def check_batch(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for settings of the micro-batches that nothing would come of."""
    if run.batch.balanced and (run.batch.labelled_share is not None or not run.model.categories):
        rule = "stand without batch.labelled_share" if run.model.categories else "stand with model.categories"
        raise ConfigError(f"{source}: batch.balanced = true: must {rule}. Change one of them.")
    overhead = run.batch.micro_batch_overhead_seconds
    if run.batch.micro_batch_seconds is None and overhead != BatchConfig().micro_batch_overhead_seconds:
        raise ConfigError(
            f"{source}: batch.micro_batch_overhead_seconds = {overhead} weighs micro-batches against each other that "
            "are cut by batch.micro_batch_seconds, which is absent. Set that one, or leave this out."
        )
    if run.batch.forward_rounds != "auto" and run.loss.scope == "micro-batch":
        raise ConfigError(
            f"{source}: batch.forward_rounds = {run.batch.forward_rounds!r}: loss.scope = 'micro-batch' takes one "
            "round, a micro-batch at a time. Leave it out."
        )


def check_checkpointing(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, when there are no layers to recompute."""
    branches = [branch for branch in (*speech_tables(run.model).values(), run.model.text) if branch is not None]
    recomputed = [one for one in branches if one.trainable != "none" and one.encoder != "filterbank"]
    if run.model.gradient_checkpointing and not recomputed:
        raise ConfigError(
            f"{source}: model.gradient_checkpointing = true: recomputes the layers of trained encoders, and none is "
            "trained. Leave it out."
        )


def check_input(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for a duration cap or an augmentation that cannot be, or that nothing would come of."""
    cap = run.data.max_duration_s
    if 0 < cap < _SHORTEST_S:
        raise ConfigError(
            f"{source}: data.max_duration_s = {cap}: must be 0, or at least the {_SHORTEST_S} s of an encoder's first "
            "frame. Raise it."
        )
    for table, speech in speech_tables(run.model).items():
        if speech.spec_augment is not None and speech.encoder == "filterbank":
            raise ConfigError(
                f"{source}: [{table}.spec_augment] masks what enters transformer layers, and {table}.encoder = "
                "'filterbank' has none. Leave it out."
            )
        if speech.spec_augment is not None and speech.trainable == "none":
            raise ConfigError(
                f"{source}: [{table}.spec_augment] with {table}.trainable = 'none': a frozen encoder is never "
                "masked. Leave one of them out."
            )
        if speech.encoder_dropout is not None and (speech.trainable == "none" or speech.encoder == "filterbank"):
            why = "a frozen encoder is" if speech.trainable == "none" else "the filter bank has none, and is"
            raise ConfigError(
                f"{source}: {table}.encoder_dropout = {speech.encoder_dropout}: {why} never run with dropout. Leave it "
                "out."
            )
    augment = run.augment
    if augment is None:
        return
    if run.model.speech is None:
        raise ConfigError(f"{source}: [augment] changes audio, and there is no [model.speech]. Leave it out.")
    snr = augment.snr_db
    if len(snr) != 2 or snr[0] > snr[1]:
        raise ConfigError(
            f"{source}: augment.snr_db = {list(snr)}: must be two numbers, the lowest and the highest. Change them."
        )
    for factor in augment.speed:
        if not math.isclose(100 * factor, round(100 * factor), abs_tol=1e-6):
            raise ConfigError(f"{source}: augment.speed = {list(augment.speed)}: must go by steps of 0.01. Round it.")
    for key, names in (("noises", augment.noises), ("impulse_responses", augment.impulse_responses)):
        if not all(name.strip() for name in names):
            raise ConfigError(f"{source}: augment.{key} = {list(names)}: must name something each. Change the list.")


def check_frames(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, when there are no frames to keep, or they would differ from epoch to epoch."""
    if not run.data.feature_cache:
        return
    named = f"{source}: data.feature_cache = {run.data.feature_cache!r}"
    if not cached_branches(run.model):
        raise ConfigError(
            f"{named}: no encoder is frozen with its frames of one layer, so there are none to keep. Set "
            'trainable = "none" and layers other than "weighted", or leave it out.'
        )
    if set(cached_branches(run.model)) == {"text"}:
        return  # words stay the same whatever is done to the audio
    for key, on in (("[augment]", run.augment is not None), ("data.max_duration_s", run.data.max_duration_s > 0)):
        if on:
            raise ConfigError(f"{named}: {key} makes each epoch read something else. Leave one of them out.")


def check_extra_shards(run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for further shard sets beside what knows one set alone."""
    if not run.data.extra_shards:
        return
    for key, on in (
        ("data.teacher_cache", bool(run.data.teacher_cache)),
        ("data.feature_cache", bool(run.data.feature_cache)),
        ("batch.labelled_share", run.batch.labelled_share is not None),
        ("batch.balanced", run.batch.balanced),
    ):
        if on:
            raise ConfigError(
                f"{source}: [[data.extra_shards]] with {key}, which must stand with data.shards alone. Leave one of "
                "them out."
            )
    total = sum(one.share for one in run.data.extra_shards)
    if total >= 1:
        raise ConfigError(
            f"{source}: the shares of [[data.extra_shards]] add up to {total:g}: must be below 1, as data.shards has "
            "the rest. Lower them."
        )


def check_distill(distill: DistillConfig, run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for options of the distillation that contradict each other, or would do nothing."""
    if distill.embedding_weight == distill.prediction_weight == 0:
        raise ConfigError(
            f"{source}: [distill] with distill.embedding_weight = 0 and distill.prediction_weight = 0 distils nothing. "
            "Set one above 0, or leave the table out."
        )
    if distill.gate == "per-dimension" and distill.prediction_weight == 0:
        raise ConfigError(
            f"{source}: distill.gate = 'per-dimension' acts on the prediction term, and distill.prediction_weight = 0 "
            "leaves that out. Set distill.prediction_weight above 0, or take another gate."
        )
    if distill.prediction_loss == "ccc" and distill.prediction_weight == 0:
        raise ConfigError(
            f"{source}: distill.prediction_loss = 'ccc' shapes the prediction term, and distill.prediction_weight "
            "= 0 leaves that out. Set distill.prediction_weight above 0, or leave the distance out."
        )
    if distill.prediction_loss == "ccc" and run.loss.scope == "micro-batch":
        raise ConfigError(
            f"{source}: distill.prediction_loss = 'ccc' is taken over the global batch, whose predictions "
            "loss.scope = 'micro-batch' does not collect. Set loss.scope = \"global\", or "
            'distill.prediction_loss = "mse".'
        )
    _check_gate(distill, run, source)


def _check_gate(distill: DistillConfig, run: RunConfig, source: str) -> None:
    """Raises: ConfigError, for settings that the gate has no use for, or that it lacks."""
    gate = distill.gate
    has_threshold = gate in THRESHOLD_GATES or (gate == "random" and not distill.reject_fraction)
    # Run files of earlier versions have the default, whether or not the gate has a use for it.
    if distill.threshold not in (None, DEFAULT_THRESHOLD) and not has_threshold:
        raise ConfigError(
            f"{source}: distill.threshold = {distill.threshold}: distill.gate = {gate!r} has no use for it. "
            'Set distill.gate = "any-dimension" or "per-dimension", or leave the threshold out.'
        )
    if distill.reject_fraction > 0 and gate not in (*THRESHOLD_GATES, "random"):
        raise ConfigError(
            f"{source}: distill.reject_fraction = {distill.reject_fraction}: distill.gate = {gate!r} has no use "
            "for it. "
            'Set distill.gate = "any-dimension", "per-dimension" or "random", or distill.reject_fraction = 0.'
        )
    by_residuals = gate in (*RESIDUAL_GATES, "random")
    for key, value in (("gate_targets", list(distill.gate_targets)), ("residual_scale", distill.residual_scale)):
        if value not in ([], "std") and not by_residuals:
            raise ConfigError(
                f"{source}: distill.{key} = {value!r}: distill.gate = {gate!r} looks at no residual. Leave it out, or "
                f"take a gate that does: {', '.join(RESIDUAL_GATES)}."
            )
    unknown = [target for target in distill.gate_targets if target not in run.model.targets]
    if unknown or len(set(distill.gate_targets)) != len(distill.gate_targets):
        raise ConfigError(
            f"{source}: distill.gate_targets = {list(distill.gate_targets)}: must name some of model.targets = "
            f"{list(run.model.targets)}, each once. Change the list."
        )
    for key, value, of in (
        ("gate_keys", distill.gate_keys, "keys"),
        ("min_confidence", "" if distill.min_confidence is None else distill.min_confidence, "confidence"),
    ):
        if (value != "") != (gate == of):
            raise ConfigError(
                f'{source}: distill.gate = {gate!r} with distill.{key} = {value!r}: gate = "{of}" and {key} go '
                "together. Give both, or neither."
            )
