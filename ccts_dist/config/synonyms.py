"""Keys of other trainers, and of other tables here, beside the key of a run file that they most likely mean."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping

from ccts_dist.config.schema import RunConfig

_BATCH = "batch.global_batch_size (of an optimizer step) or batch.micro_batch_size (of a forward pass)"

SYNONYMS: Mapping[str, str] = {
    "lr": "optim.learning_rate",
    "wd": "optim.weight_decay",
    "optimizer": "optim.name",
    "scheduler": "optim.lr_scheduler",
    "lr_scheduler_type": "optim.lr_scheduler",
    "warmup": "optim.warmup_steps",
    "warmup_ratio": "optim.warmup_steps",
    "num_warmup_steps": "optim.warmup_steps",
    "clip": "optim.max_grad_norm",
    "grad_clip": "optim.max_grad_norm",
    "gradient_clip_val": "optim.max_grad_norm",
    "gradient_clipping": "optim.max_grad_norm",
    "bs": _BATCH,
    "batch_size": _BATCH,
    "train_batch_size": "batch.global_batch_size",
    "per_device_train_batch_size": "batch.micro_batch_size",
    "micro_batch": "batch.micro_batch_size",
    "accumulation": "batch.micro_batch_size (gradient accumulation follows from it)",
    "grad_accum": "batch.micro_batch_size (gradient accumulation follows from it)",
    "gradient_accumulation_steps": "batch.micro_batch_size (gradient accumulation follows from it)",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "num_steps": "train.max_steps",
    "patience": "train.early_stopping_patience",
    "early_stopping": "train.early_stopping_patience",
    "amp": "train.precision",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "dtype": "train.precision",
    "mixed_precision": "train.precision",
    "compile": "train.torch_compile",
    "zero": "train.deepspeed",
    "zero_stage": "train.deepspeed",
    "workers": "data.num_workers",
    "random_seed": "seed",
    "out": "output_dir",
    "folder": "output_dir",
    "experiment": "tracking.experiment_name",
    "data_dir": "data.shards",
    "dataset": "data.shards",
    "cache": "data.teacher_cache or data.shard_cache",
    "teacher": "data.teacher_cache",
    "backbone": "model.speech.encoder",
    "model_name_or_path": "model.speech.encoder",
    "pretrained": "model.speech.encoder",
    "freeze": "model.speech.trainable",
    "balanced_sampling": "batch.balanced",
    "weighted_sampler": "batch.balanced",
    "labels": "model.targets or model.categories",
    "classes": "model.categories",
    "hidden_size": "model.embedding_dim or model.head_hidden_dim",
    "lambda": "distill.embedding_weight",
    "alpha": "distill.embedding_weight",
}
"""Name elsewhere -> key here, with a word of explanation where two are possible."""

_MOST = 3
"""Keys of one name that are worth listing."""


def key_meant(key: str) -> str:
    """Dotted key that an unknown ``key`` most likely means, or several in words; "" for no idea."""
    plain = key.strip().lower().replace("-", "_")
    if plain in SYNONYMS:
        return SYNONYMS[plain]
    same = [dotted for dotted in dict.fromkeys(_keys(RunConfig, "")) if dotted.rpartition(".")[2] == plain]
    return " or ".join(same) if len(same) <= _MOST else ""


def _keys(cls: type, prefix: str) -> Iterator[str]:
    """Every key of a table and the tables in it, dotted; a table that may be repeated is omitted."""
    for name, hint in typing.get_type_hints(cls).items():
        inner = next((one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)), None)
        if inner is None:
            yield f"{prefix}{name}"
        elif typing.get_origin(hint) is not tuple:
            yield from _keys(typing.cast(type, inner), f"{prefix}{name}.")
