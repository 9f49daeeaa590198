"""Names that were others before 0.2.0: keys of run files, metrics, and fields of what runs store."""

from collections.abc import Mapping
from typing import Any

from ccts_dist.errors import ConfigError, is_first_rank
from ccts_dist.progress import log

_SPEECH = {
    "train_front_end": "train_feature_encoder",
    "normalise": "do_normalize",
}
_FILTERBANK = {"bins": "num_mel_bins", "window_ms": "frame_length_ms", "step_ms": "frame_shift_ms"}
_SPEC_AUGMENT = {
    "time_probability": "mask_time_prob",
    "time_length": "mask_time_length",
    "feature_probability": "mask_feature_prob",
    "feature_length": "mask_feature_length",
}

RENAMED: Mapping[str, Mapping[str, str]] = {
    "": {"name": "run_name", "output": "output_dir"},
    "data": {
        "teacher": "teacher_cache",
        "window_utterances": "shuffle_buffer_size",
        "duration_group": "bucket_batches",
        "streams": "num_partitions",
        "workers": "num_workers",
        "damaged": "on_corrupt",
        "max_damaged": "max_corrupt",
        "frames": "feature_cache",
        "frames_type": "feature_cache_dtype",
        "cache": "shard_cache",
        "cache_gb": "shard_cache_gb",
    },
    "batch": {"global_utterances": "global_batch_size", "micro_utterances": "micro_batch_size"},
    "model": {"embedding": "embedding_dim", "head_hidden": "head_hidden_dim", "also": "extra_speech"},
    "model.speech": _SPEECH,
    "model.speech.filterbank": _FILTERBANK,
    "model.speech.spec_augment": _SPEC_AUGMENT,
    "model.extra_speech": _SPEECH,
    "model.extra_speech.filterbank": _FILTERBANK,
    "model.extra_speech.spec_augment": _SPEC_AUGMENT,
    "model.text": {"vocabulary": "vocab_size"},
    "distill": {
        "distance": "embedding_loss",
        "prediction_distance": "prediction_loss",
        "leave_out": "reject_fraction",
        "standardise": "standardize",
    },
    "optim": {
        "clip_norm": "max_grad_norm",
        "schedule": "lr_scheduler",
        "encoder_factor": "encoder_lr_scale",
        "speech_factor": "speech_lr_scale",
        "text_factor": "text_lr_scale",
    },
    "train": {
        "validate_steps": "eval_steps",
        "stop_after": "early_stopping_patience",
        "checkpoint_steps": "save_steps",
        "checkpoint_minutes": "save_minutes",
        "keep_checkpoints": "save_total_limit",
        "most_skipped_in_a_row": "nonfinite_patience",
        "timeout_s": "comm_timeout_s",
        "grace_s": "stop_grace_s",
    },
    "tracking": {
        "uri": "tracking_uri",
        "experiment": "experiment_name",
        "register": "registered_model_name",
        "parent": "parent_run_name",
        "kind": "backend",
    },
}
"""Old key to new key, by the table that holds it; tables by their present names."""

_VALUES: Mapping[str, Mapping[str, str]] = {
    "distill.distance": {"squared": "mse", "norm": "l2"},
    "distill.prediction_distance": {"squared": "mse"},
    "data.damaged": {"stop": "raise"},
}
"""Old value to new value of an old key."""


def with_present_keys(tree: Mapping[str, Any], *, source: str, table: str = "", stored: bool = False) -> dict[str, Any]:
    """A run tree under today's keys; one warning on rank 0 names those that were renamed.

    Args:
        table: that ``tree`` is, as "model"; "" for a whole run.
        stored: written by a training, so that nobody has to rename anything: the warning gives their number.

    Raises:
        ConfigError: an old key stands beside its new one.
    """
    found: dict[str, str] = {}
    present = _renamed(tree, table, source, found)
    if found and is_first_rank():
        pairs = [f"{old} is now {new}" for old, new in found.items()]
        named = f"{len(pairs)} keys, as {pairs[0]}" if stored else f"rename them: {', '.join(pairs)}"
        log(f"{source}: warning: renamed keys are read as their new ones, {named}")
    return present


def present_override(override: str) -> str:
    """An override like ``"data.teacher=FOLDER"`` under today's key, with a warning on rank 0 if it was renamed."""
    dotted, equals, text = override.partition("=")
    keys, table = [], ""
    for key in dotted.strip().split("."):
        keys.append(RENAMED.get(table, {}).get(key, key))
        table = f"{table}.{keys[-1]}".lstrip(".")
    if not equals or table == dotted.strip():
        return override
    if is_first_rank():
        log(f"--set {override}: warning: {dotted.strip()} is now {table}; rename it")
    value = text.strip(" \"'")
    return f"{table}={_VALUES.get(dotted.strip(), {}).get(value, text)}"


def _renamed(tree: Mapping[str, Any], table: str, source: str, found: dict[str, str]) -> dict[str, Any]:
    names, prefix = RENAMED.get(table, {}), f"{table}." if table else ""
    present: dict[str, Any] = {}
    for old, value in tree.items():
        key = names.get(old, old)
        if key != old:
            if key in tree:
                raise ConfigError(f"{source}: {prefix}{old} is now {prefix}{key}, and both are there. Take {old} out.")
            found[f"{prefix}{old}"] = f"{prefix}{key}"
            value = _VALUES.get(f"{prefix}{old}", {}).get(value, value) if isinstance(value, str) else value
        present[key] = _inner(value, f"{prefix}{key}", source, found)
    return present


def _inner(value: Any, table: str, source: str, found: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        has_names = any(f"{name}.".startswith(f"{table}.") for name in RENAMED)
        return _renamed(value, table, source, found) if has_names else value
    if isinstance(value, list) and table in RENAMED:
        return [_renamed(one, table, source, found) if isinstance(one, Mapping) else one for one in value]
    return value


_NAMES = {
    "kept": "gate_mask",
    "kept_share": "distilled_fraction",
    "deviation": "residual_std",
    "wrong_left_out": "wrong_rejected",
    "right_left_out": "right_rejected",
}
"""Old name to new name of a field in summaries, states of checkpoints, tables of predictions and fits of model folders.
A column of a target, as "kept.valence", has the name before its dot."""

_STORED = {
    "residual_std": "deviation",
    "embedding_std": "embedding_deviation",
    "extra_speech": "also",
    "do_normalize": "normalise",
    "extra_do_normalize": "also_normalise",
}
"""Name in code to the name in teacher caches, model folders and state dicts, whose digests rest on it."""

_METRICS = {
    "train/utterances_per_s": "throughput/utterances_per_s",
    "train/audio_s_per_s": "throughput/audio_s_per_s",
    "train/gradient_norm": "train/grad_norm",
    "train/learning_rate_rest": "train/lr_head",
    "train/kept_share": "distill/fraction",
    "train/damaged_utterances": "data/corrupt_utterances",
    "epoch/train_gradient_norm": "epoch/train_grad_norm",
    "epoch/kept_share": "epoch/distill_fraction",
    "number of train/gradient_norm": "number of train/grad_norm",
    "kept": "distilled",
}
_METRIC_PREFIXES = {"train/learning_rate_": "train/lr_", "train/kept_share_": "distill/fraction_"}
"""Old metric to new metric, in histories, runs of a tracking server, and the running sums of checkpoints."""


def present_name(name: str) -> str:
    """Today's name of a stored field or column."""
    field, dot, target = name.partition(".")
    return _NAMES.get(field, field) + dot + target


def stored_name(name: str) -> str:
    """Name under which a field or a module is stored, where digests hold it to the old one."""
    return _STORED.get(name, name)


def present_metric(name: str) -> str:
    """Today's name of a metric."""
    for old, new in _METRIC_PREFIXES.items():
        if name not in _METRICS and name.startswith(old):
            return new + name.removeprefix(old)
    return _METRICS.get(name, name)


def with_present_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored record under today's names of its fields."""
    return {present_name(name): value for name, value in tree.items()}


def with_present_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a history under today's names of its metrics."""
    return {present_metric(name): value for name, value in row.items()}
