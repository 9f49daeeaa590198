"""DeepSpeed's JSON file: who owns which number.

Batch sizes, accumulation, clipping, learning rates and precision belong to the run file. In a ds_config they are
"auto" or absent: a literal there would override the run file without a word. What a ds_config may state is how the work
is laid out: stage, buckets, overlap, offload; every other key of DeepSpeed's is refused, since many of them change what
is computed.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ccts_dist.config import RunConfig
from ccts_dist.errors import ConfigError
from ccts_dist.limits import parse_json, read_limited
from ccts_dist.model.emotion import EmotionModel
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch
from ccts_dist.shipped import find_ds_config

OWNED_BY_RUN_FILE = {
    "train_batch_size": "batch.global_batch_size",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size",
    "gradient_accumulation_steps": "[batch] and the number of ranks",
    "gradient_clipping": "optim.max_grad_norm",
    "optimizer": "[optim]",
    "scheduler": "optim.lr_scheduler",
    "fp16": "train.precision",
    "bf16": "train.precision",
}
"""Keys of a ds_config and what decides them instead."""

PARTITIONING_KEYS = (
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "wall_clock_breakdown",
    "memory_breakdown",
    "comms_logger",
    "flops_profiler",
)
"""The other keys that a ds_config may have: layout, and what DeepSpeed measures and prints."""

ZERO_KEYS = (
    "stage",
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
    "allgather_bucket_size",
    "overlap_comm",
    "offload_param",
    "offload_optimizer",
    "sub_group_size",
    "round_robin_gradients",
    "parameter_alignment",
    "ignore_unused_parameters",
    "memory_efficient_linear",
    "log_trace_cache_warnings",
    "enable_sanity_checks",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential",
    "stage3_gather_16bit_weights_on_model_save",
)
"""Keys that its ``zero_optimization`` may have."""

OFFLOAD_KEYS = ("device", "pin_memory")
"""Keys of ``offload_param`` and ``offload_optimizer``. Not ``ratio``, which would put another optimizer beside ours."""

OFFLOAD_DEVICES = ("none", "cpu")
"""Not "nvme": what is swapped out there could not be gathered for a checkpoint."""


def read_ds_config(path: Path) -> dict[str, Any]:
    """The ds_config in ``path``, once nothing in it contradicts the run file.

    A relative path that names no file is looked up among the shipped ds_configs: ``ds_configs/zero2.json`` is found
    from any folder.

    Raises:
        ConfigError: no such file, no JSON object, no ZeRO stage 0 to 3, a literal value where the run file decides, or
            a key that is not about layout.
    """
    try:
        tree = parse_json(read_limited(find_ds_config(path), "config.json"))
    except OSError as error:
        raise ConfigError(
            f"train.deepspeed = '{path}': cannot read it ({error.strerror}). Name a file of ds_configs/."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}. Mend the file.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a JSON object. See ds_configs/README.md.")
    for key, owner in OWNED_BY_RUN_FILE.items():
        if key in tree and not _is_auto(tree[key]):
            raise ConfigError(
                f'{path}: {key} = {json.dumps(tree[key])}: must be "auto" or absent, since the run file\'s {owner} '
                "decides it. Take it out."
            )
    _refuse_unknown(path, "", tree, (*OWNED_BY_RUN_FILE, *PARTITIONING_KEYS))
    zero = tree.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage = {json.dumps(stage)}: must be 0, 1, 2 or 3. Change it.")
    assert isinstance(zero, dict)
    _check_partitioning(path, zero)
    return tree


def open_ds_config(run: RunConfig) -> dict[str, Any]:
    """The ds_config of a run, once it carries what the run file asks for.

    Raises:
        ConfigError: as ``read_ds_config``; or stage 3 with one round of forward passes, or with compiled layers, whose
            hooks would fetch weights between a layer's operators.
    """
    ds_config = read_ds_config(Path(run.train.deepspeed))
    if ds_config["zero_optimization"]["stage"] < 3:
        return ds_config
    if run.train.torch_compile:
        raise ConfigError(
            f"train.torch_compile = true with train.deepspeed = '{run.train.deepspeed}': layers cannot be compiled "
            "under ZeRO-3. Use stage 2 or lower, or leave it out."
        )
    if run.batch.forward_rounds == "one":
        raise ConfigError(
            f"batch.forward_rounds = 'one' with {run.train.deepspeed}: ZeRO-3 takes each micro-batch's backward pass "
            "right after its forward pass. Leave it out, or use stage 2 or lower."
        )
    return ds_config


def check_calls(path: str, ds_config: Mapping[str, Any], model: EmotionModel) -> None:
    """Refuse encoders that would have ranks wait for each other for ever.

    Args:
        path: of the ds_config, for the error.

    Raises:
        ConfigError: stage 3, and an encoder that is called once for each utterance.
    """
    if ds_config["zero_optimization"]["stage"] < 3:
        return
    for branch in (model.speech, *model.extra_speech):
        if isinstance(branch, ExtractedBranch) and branch.calls_vary:
            raise ConfigError(
                f"{path}: ZeRO-3 needs ranks that call each layer equally often, and a "
                f"{branch.encoder.config.model_type} encoder is called once for each utterance. Use stage 2 or lower."
            )


def _check_partitioning(path: Path, zero: dict[str, Any]) -> None:
    """Raises: ConfigError: ``zero_optimization`` holds what is not about layout, or what does not fit its stage."""
    _refuse_unknown(path, "zero_optimization.", zero, ZERO_KEYS)
    for key, value in zero.items():
        if value == "auto":
            raise ConfigError(f'{path}: zero_optimization.{key} = "auto": nothing fills it in. Write the value.')
    for key, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        offload = zero.get(key)
        if offload is None:
            continue
        where = f"zero_optimization.{key}"
        if not isinstance(offload, dict):
            raise ConfigError(f'{path}: {where} = {json.dumps(offload)}: must be an object, as {{"device": "cpu"}}.')
        _refuse_unknown(path, f"{where}.", offload, OFFLOAD_KEYS)
        device = offload.get("device", "none")
        if device not in OFFLOAD_DEVICES:
            raise ConfigError(
                f"{path}: {where}.device = {json.dumps(device)}: must be {' or '.join(OFFLOAD_DEVICES)}. Change it."
            )
        if device != "none" and zero["stage"] < lowest:
            raise ConfigError(
                f"{path}: {where} with zero_optimization.stage = {zero['stage']}: needs stage {lowest} or more. Raise "
                "the stage, or take it out."
            )


def _refuse_unknown(path: Path, where: str, tree: dict[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key in tree:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else "Take it out; ds_configs/README.md lists what may stand there."
            )
            raise ConfigError(
                f"{path}: {where}{key} = {json.dumps(tree[key])}: not one of the keys that name how the work is laid "
                f"out, and others could change what is computed. {hint}"
            )


def _is_auto(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_auto(inner) for inner in value.values())
    return value == "auto"


def resolve_ds_config(tree: Mapping[str, Any], run: RunConfig) -> dict[str, Any]:
    """The ds_config with the run file's numbers filled in."""
    resolved = {key: value for key, value in tree.items() if key not in OWNED_BY_RUN_FILE}
    resolved |= {
        "train_micro_batch_size_per_gpu": run.batch.micro_batch_size,
        # The engine states itself which pass of a step is the last: their number may differ from step to step.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": run.optim.max_grad_norm,
        # With the check, a gradient that is not finite moves no weights in bf16 either.
        "bf16": {"enabled": run.train.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,  # SGD, which the tests compare ranks with
        # With offload, Accelerate and DeepSpeed would else put a CPU Adam of their own in place of our optimizer: the
        # schedule would go on turning the rates of one that nobody steps.
        "zero_force_ds_cpu_optimizer": False,
        # DeepSpeed counts samples by the two numbers above, which is not what we train on: keep it from printing them.
        "steps_per_print": 2**31 - 1,
        # It waits for the whole GPU in every forward pass and step, and measures what train.meter does without waiting.
        "timers": {"throughput": {"enabled": False}},
    }
    return resolved


def launcher_warnings(environment: Mapping[str, str], precision: str) -> list[str]:
    """A line for each option of ``accelerate launch`` that is another than the run file's, which counts.

    Accelerate itself would state "Gradient accumulation steps mismatch", and compute as no run file states.
    """
    own = {"fp32": "no", "tf32": "no"}.get(precision, precision)
    options = (
        ("gradient_accumulation_steps", "1", "[batch]"),
        ("mixed_precision", own, "train.precision"),
    )
    return [
        f"warning: accelerate launch --{option} {given} is not used: {keys} of the run file decides"
        for option, same, keys in options
        if (given := environment.get(f"ACCELERATE_{option.upper()}", same)) not in (same, "1", "no")
    ]
