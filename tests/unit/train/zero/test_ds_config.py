"""Each number has one owner: what the run file decides cannot stand in a ds_config."""

import json
import re
from pathlib import Path

import pytest

from ccts_dist.config import RunConfig, parse_run
from ccts_dist.errors import ConfigError
from ccts_dist.train.zero.ds_config import (
    OFFLOAD_KEYS,
    OWNED_BY_RUN_FILE,
    ZERO_KEYS,
    launcher_warnings,
    open_ds_config,
    read_ds_config,
    resolve_ds_config,
)

SHIPPED = sorted(Path("ds_configs").glob("*.json"))


def test_there_are_shipped_files():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_is_accepted_and_named_after_its_stage(path):
    assert read_ds_config(path)["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero")[0])


def test_there_is_a_file_for_every_stage_and_for_offload():
    names = ["zero0", "zero1", "zero1_gpu", "zero2", "zero2_gpu", "zero3", "zero3_offload"]
    assert [path.stem for path in SHIPPED] == names


@pytest.mark.parametrize("stage", [1, 2])
def test_file_for_gpus_reduces_large_buckets_beside_the_backward_pass_and_is_else_that_of_its_stage(stage):
    for_gpus, plain = (read_ds_config(Path(f"ds_configs/zero{stage}{suffix}.json")) for suffix in ("_gpu", ""))
    zero = for_gpus.pop("zero_optimization")
    sizes = {"reduce_bucket_size": 200_000_000, "allgather_bucket_size": 200_000_000}
    assert zero == plain.pop("zero_optimization") | {"overlap_comm": True} | sizes
    assert for_gpus == plain


# Keys of DeepSpeed's own documentation, each of which decides something that the run file decides too, or that only the
# code around it can decide.
OVERRIDING = {
    "optimizer_legacy_fusion": True,
    "communication_data_type": "bf16",
    "prescale_gradients": True,
    "gradient_predivide_factor": 2.0,
    "sparse_gradients": True,
    "data_types": {"grad_accum_dtype": "bf16"},
    "amp": {"enabled": True},
    "torch_autocast": {"enabled": True},
    "zero_force_ds_cpu_optimizer": True,
    "elasticity": {"enabled": True},
    "autotuning": {"enabled": True},
    "data_efficiency": {"enabled": True},
    "curriculum_learning": {"enabled": True},
    "progressive_layer_drop": {"enabled": True},
    "compression_training": {},
    "steps_per_print": 1,
    "tensor_parallel": {"autotp_size": 2},
}


@pytest.mark.parametrize("key", OVERRIDING)
def test_key_that_could_change_what_is_computed_is_refused(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: OVERRIDING[key]}))
    with pytest.raises(ConfigError, match=f"ds.json: {key} = .*not one of the keys that name how the work is laid out"):
        read_ds_config(path)


@pytest.mark.parametrize(
    ("zero", "words"),
    [
        ({"zero_quantized_weights": True}, "zero_optimization.zero_quantized_weights = true: not one of the keys"),
        ({"zero_hpz_partition_size": 2}, "zero_hpz_partition_size = 2: not one of the keys"),
        ({"compute_grad_norm": False}, "compute_grad_norm = false: not one of the keys"),
        ({"reduce_bucket_sise": 1}, "Did you mean 'reduce_bucket_size'?"),
        ({"reduce_bucket_size": "auto"}, 'reduce_bucket_size = "auto": nothing fills it in'),
        ({"offload_optimizer": "cpu"}, 'offload_optimizer = "cpu": must be an object'),
        ({"offload_optimizer": {"device": "nvme"}}, 'offload_optimizer.device = "nvme": must be none or cpu'),
        ({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "offload_optimizer.ratio = 0.5: not one of the keys"),
        ({"offload_param": {"device": "cpu"}}, "offload_param with zero_optimization.stage = 2: needs stage 3"),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, "stage = 0: needs stage 1"),
    ],
)
def test_zero_optimization_may_only_state_how_the_work_is_laid_out(tmp_path, zero, words):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, **zero}}))
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_ds_config(path)


def test_every_key_that_may_be_reported_is_one_that_deepspeed_reads():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(ZERO_KEYS) <= known
    for kind in (DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig):
        assert set(OFFLOAD_KEYS) <= set(kind.model_fields)


@pytest.mark.parametrize("key", sorted(OWNED_BY_RUN_FILE))
def test_literal_value_that_the_run_file_owns_is_refused(tmp_path, key):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: {"enabled": True}}))
    with pytest.raises(ConfigError, match=f'ds.json: {key} = .* must be "auto" or absent'):
        read_ds_config(path)
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: "auto"}))
    read_ds_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": Infinity}}', "not JSON: Infinity is no number"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 1' + "0" * 400 + "}}", "a number of 401 digits"),
        ("[]", "must hold a JSON object"),
        ('{"zero_optimization": 2}', "stage = null: must be 0, 1, 2 or 3"),
        ("{}", "stage = null: must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 4}}', "stage = 4: must be 0, 1, 2 or 3"),
    ],
)
def test_unusable_file_is_the_users_mistake(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_ds_config(path)


def test_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(ConfigError, match="cannot read it"):
        read_ds_config(tmp_path / "none.json")


@pytest.mark.parametrize("stage", ["zero0", "zero1_gpu", "zero2_gpu", "zero3", "zero3_offload"])
def test_layers_are_compiled_only_where_their_weights_stay_whole(stage):
    def run(asked: bool) -> RunConfig:
        tree = {"run_name": "r", "output_dir": "o", "data": {"shards": "s"}, "model": {"speech": {"encoder": "e"}}}
        return parse_run({**tree, "train": {"deepspeed": f"ds_configs/{stage}.json", "torch_compile": asked}})

    open_ds_config(run(False))
    if stage.startswith("zero3"):
        with pytest.raises(ConfigError, match=r"torch_compile = true .*layers cannot be compiled under ZeRO-3"):
            open_ds_config(run(True))
    else:
        open_ds_config(run(True))


def test_run_files_numbers_are_filled_in():
    run = parse_run(
        {
            "run_name": "r",
            "output_dir": "o",
            "data": {"shards": "s"},
            "model": {"speech": {"encoder": "e"}},
            "batch": {"global_batch_size": 64, "micro_batch_size": 8},
            "optim": {"max_grad_norm": 0.5},
            "train": {"precision": "bf16"},
        }
    )
    resolved = resolve_ds_config({"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}, run)
    assert resolved["train_micro_batch_size_per_gpu"] == 8
    assert resolved["gradient_accumulation_steps"] == 1  # the engine marks the last micro-batch of a step itself
    assert resolved["gradient_clipping"] == 0.5
    assert resolved["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert resolved["zero_force_ds_cpu_optimizer"] is False
    assert resolved["timers"] == {"throughput": {"enabled": False}}, "it waits for the whole GPU in every forward pass"


@pytest.mark.parametrize(
    ("options", "precision", "named"),
    [
        ({}, "fp32", []),
        ({"GRADIENT_ACCUMULATION_STEPS": "1", "MIXED_PRECISION": "no"}, "bf16", []),
        ({"GRADIENT_ACCUMULATION_STEPS": "4", "MIXED_PRECISION": "bf16"}, "bf16", ["gradient_accumulation_steps 4"]),
        ({"MIXED_PRECISION": "fp16"}, "tf32", ["mixed_precision fp16"]),
    ],
)
def test_options_of_accelerate_launch_that_the_run_file_overrules_are_named(options, precision, named):
    lines = launcher_warnings({f"ACCELERATE_{name}": value for name, value in options.items()}, precision)
    assert [line.split("--")[1].split(" is ")[0] for line in lines] == named
