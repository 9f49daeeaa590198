"""A rank's memory by parts, against numbers worked by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from ccts_dist.config import OptimConfig
from ccts_dist.train.memory.estimate import (
    GPU_CONTEXT_BYTES,
    HOST_PROCESS_BYTES,
    NCCL_BYTES,
    estimate_memory,
)
from ccts_dist.train.memory.parts import Activations, Estimate
from ccts_dist.train.zero.ds_config import read_ds_config
from ccts_dist.train.zero.partitioning import ModelSizes, ZeroPartitioning, read_partitioning, sizes_of

# 1,000 numbers, 900 of them trained, in parameters of 400, 300, 200 and a frozen one of 100.
SIZES = ModelSizes(numels=(400, 300, 200, 100), trained_numels=(400, 300, 200))
ADAM = OptimConfig(name="adam")
SHIPPED = sorted(Path("ds_configs").glob("*.json"))


def estimate(layout: ZeroPartitioning, optim: OptimConfig = ADAM, *, sizes: ModelSizes = SIZES, **changes) -> Estimate:
    settings = {"precision": "fp32", "num_ranks": 2, "num_micro_batches": 1, "on_gpu": False}
    activations = Activations(training=5_000, scoring=700, shape="2 x 1.0 s")
    return estimate_memory(sizes, layout, optim, activations=activations, **settings | changes)


def part(whole: Estimate, what: str, phase: str) -> int:
    """Bytes of all parts whose name begins so and that are there in this phase."""
    return sum(p.size_bytes for p in whole.parts if p.what.startswith(what) and phase in p.phases)


def needed(whole: Estimate, phase: str) -> int:
    return sum(p.size_bytes for p in whole.parts if phase in p.phases and not p.on_host)


def test_stage_2_in_fp32_keeps_whole_weights_and_half_of_all_else():
    whole = estimate(ZeroPartitioning(stage=2, reduce_bucket=60))
    step = "optimizer step"
    assert part(whole, "weights", step) == 4 * 1_000
    assert part(whole, "master weights", step) == 4 * 450
    assert part(whole, "optimizer state", step) == 8 * 450
    assert part(whole, "update", step) == (4 + 2 * 4) * 450  # the flat gradient, and two temporaries of torch's Adam
    backward = "forward and backward"
    assert part(whole, "gradients", backward) == 4 * 450 + 4 * 60  # with the flat copy of a bucket
    assert part(whole, "gradient buckets", backward) == 4 * 60
    assert part(whole, "activations", backward) == 5_000
    assert needed(whole, step) == 4_000 + 1_800 + 3_600 + 5_400 + HOST_PROCESS_BYTES
    # Beside the engine lies the best model, and its file is mapped.
    assert whole.peak() == ("scoring the best model", 4_000 + 1_800 + 3_600 + 2 * 4_000 + HOST_PROCESS_BYTES)


def test_stage_2_in_bf16_has_two_bytes_for_weights_and_gradients_and_four_for_what_is_updated():
    whole = estimate(ZeroPartitioning(stage=2, reduce_bucket=60), precision="bf16")
    assert part(whole, "weights, bf16", "optimizer step") == 2 * 1_000
    assert part(whole, "master weights", "optimizer step") == 4 * 450
    assert part(whole, "optimizer state", "optimizer step") == 8 * 450
    assert part(whole, "gradients", "forward and backward") == 2 * 450 + 2 * 60
    assert part(whole, "all weights", "saving a model") == 4 * 1_000  # a model's folder is in fp32


def test_several_micro_batches_hold_the_sum_so_far_beside_the_last_micro_batch():
    once, twice = (
        estimate(ZeroPartitioning(stage=2, reduce_bucket=60), num_micro_batches=num_micro_batches)
        for num_micro_batches in (1, 4)
    )
    backward = "forward and backward"
    assert part(twice, "gradients", backward) - part(once, "gradients", backward) == 4 * 450


def test_stage_3_divides_the_weights_too_and_gathers_what_it_uses():
    layout = ZeroPartitioning(stage=3, reduce_bucket=60, prefetch_bucket=50, whole_below=200, most_live=500)
    whole = estimate(layout)
    backward = "forward and backward"
    assert part(whole, "weights, fp32", backward) == 4 * 500
    assert part(whole, "small weights", backward) == 4 * (200 + 100)
    assert part(whole, "weights gathered", backward) == 4 * 500
    assert part(whole, "weights being gathered", backward) == 4 * 50
    # The C library's allocator keeps them; a GPU's caches them for the next tensor of whatever kind.
    assert part(whole, "weights gathered", "optimizer step") == 4 * 500
    assert part(estimate(layout, on_gpu=True), "weights gathered", "optimizer step") == 0
    assert part(whole, "gradients", "optimizer step") == 4 * 450
    assert part(whole, "update", "optimizer step") == (4 + 2 * 4) * 450
    assert part(whole, "weights, fp32", "start") == 4 * 1_000


def test_stage_3_updates_no_more_than_a_sub_group_at_a_time():
    whole = estimate(ZeroPartitioning(stage=3, sub_group=100))
    assert part(whole, "update", "optimizer step") == (4 + 2 * 4) * 100


def test_stage_1_keeps_whole_gradients_until_they_are_reduced():
    whole = estimate(ZeroPartitioning(stage=1, reduce_bucket=60))
    assert part(whole, "gradients", "forward and backward") == 4 * 900 + 4 * 450 + 4 * 60
    assert part(whole, "master weights", "optimizer step") == 4 * 450


def test_stage_0_in_fp32_needs_no_master_weights_and_divides_nothing():
    whole = estimate(ZeroPartitioning(stage=0))
    assert part(whole, "master weights", "optimizer step") == 0
    assert part(whole, "optimizer state", "optimizer step") == 8 * 900
    assert part(whole, "gradients", "optimizer step") == 4 * 900
    assert part(whole, "update", "optimizer step") == 2 * 4 * 400  # torch's Adam takes one parameter after the other
    assert part(whole, "gradients being reduced", "forward and backward") == 4 * 900
    assert (
        part(estimate(ZeroPartitioning(stage=0), num_ranks=1), "gradients being reduced", "forward and backward") == 0
    )


def test_average_of_weights_is_spread_like_the_optimizer_state_and_copied_for_a_checkpoint():
    for stage, own in ((0, 900), (2, 450)):
        settings = ZeroPartitioning(stage=stage)
        plain = estimate(settings, async_save=True)
        averaged = estimate(settings, async_save=True, keeps_average=True)
        assert needed(averaged, "optimizer step") - needed(plain, "optimizer step") == 4 * own + 4 * 900
        assert needed(averaged, "start") == needed(plain, "start")
    offloaded = estimate(ZeroPartitioning(stage=2, offload_optimizer=True), on_gpu=True, keeps_average=True)
    assert [p.on_host for p in offloaded.parts if p.what.startswith("average")] == [True]


def test_plain_sgd_has_no_state():
    whole = estimate(ZeroPartitioning(stage=2), OptimConfig(name="sgd"))
    assert part(whole, "optimizer state", "optimizer step") == 0
    assert part(whole, "update", "optimizer step") == (4 + 4) * 450  # partition's gradients, and those laid flat


def test_offload_moves_state_and_weights_to_the_host():
    layout = ZeroPartitioning(stage=3, offload_optimizer=True, offload_parameters=True, reduce_bucket=60, most_live=500)
    there = estimate(layout, precision="bf16", on_gpu=True)
    here = estimate(ZeroPartitioning(stage=3, reduce_bucket=60, most_live=500), precision="bf16", on_gpu=True)
    on_host = {p.what for p in there.parts if p.on_host}
    assert {"weights, bf16", "master weights, fp32", "optimizer state (adam)", "gradients"} <= on_host
    moved = 2 * 500 + 4 * 450 + 8 * 450 + 2 * 450
    step = "optimizer step"
    assert needed(here, step) - needed(there, step) == moved + part(here, "update", step)
    assert there.peak(on_host=True)[1] > HOST_PROCESS_BYTES + moved


def test_on_a_gpu_the_hosts_memory_is_distinguished():
    whole = estimate(ZeroPartitioning(stage=2, reduce_bucket=60), on_gpu=True)
    # Weights, master weights, optimizer state and the best model in fp32, with its activations.
    driver = GPU_CONTEXT_BYTES + NCCL_BYTES
    assert needed(whole, "scoring the best model") == 4_000 + 1_800 + 3_600 + 4_000 + 700 + driver
    backward = 4_000 + 1_800 + 3_600 + 1_800 + 240 + 240 + 5_000
    assert whole.peak() == ("forward and backward", backward + backward // 10 + driver)
    # The best model is read into the host's memory from a mapped file.
    assert whole.peak(on_host=True) == ("scoring the best model", 8_000 + HOST_PROCESS_BYTES)
    table = "\n".join(whole.table())
    assert "on the GPU" in table
    assert "10% of the tensors [forward and backward]" in table
    assert "on the host" in table


def test_copy_for_a_checkpoint_lies_on_the_host_while_training_goes_on():
    there, without = (estimate(ZeroPartitioning(stage=2), on_gpu=True, async_save=asked) for asked in (True, False))
    copy = 4 * 1_000 + 8 * 900  # weights, and the two moments of what is trained; the other ranks have no copy
    for phase in ("forward and backward", "optimizer step", "saving a model"):
        assert part(there, "copy for a checkpoint", phase) == copy
        assert needed(there, phase) == needed(without, phase)
    assert part(there, "copy for a checkpoint", "scoring the best model") == 0
    assert (
        part(estimate(ZeroPartitioning(stage=2), OptimConfig(name="sgd"), async_save=True), "copy", "optimizer step")
        == 4_000
    )


def test_margins_of_a_gpu_are_a_tenth_of_the_tensors_a_context_and_communicators_between_ranks():
    one, two = (estimate(ZeroPartitioning(stage=0), on_gpu=True, num_ranks=ranks) for ranks in (1, 2))
    step = "optimizer step"
    assert part(one, "CUDA context", step) == part(two, "CUDA context", step) == GPU_CONTEXT_BYTES
    assert (part(one, "NCCL", step), part(two, "NCCL", step)) == (0, NCCL_BYTES)
    # Weights, gradients and two moments: 4 x 1,000 + 4 x 900 + 8 x 900. Fused Adam has no temporaries.
    assert part(one, "update", step) == 0
    assert one.fragmentation(step, on_host=False) == (4_000 + 3_600 + 7_200) // 10
    assert one.fragmentation(step, on_host=True) == 0
    assert estimate(ZeroPartitioning(stage=0)).fragmentation(step, on_host=True) == 0


def test_frozen_weights_keep_their_file_mapped_where_they_are_neither_moved_nor_cast():
    step, layout = "optimizer step", ZeroPartitioning(stage=2)
    mapped = replace(SIZES, mapped=950)
    for changes, kept in (({}, 4 * (950 - 100)), ({"precision": "bf16"}, 0), ({"on_gpu": True}, 0)):
        assert part(estimate(layout, sizes=mapped, **changes), "encoders' files", step) == kept
    assert part(estimate(ZeroPartitioning(stage=3), sizes=mapped), "encoders' files", step) == 0
    assert part(estimate(layout, sizes=mapped), "encoders' files", "start") == 4 * 950


def test_without_test_splits_the_best_model_stays_off_the_gpu():
    scoring = "scoring the best model"
    with_test, without = (estimate(ZeroPartitioning(stage=2), on_gpu=True, tests=tests) for tests in (True, False))
    assert needed(with_test, scoring) - needed(without, scoring) == 4_000 + 700


def test_a_gpu_gives_a_bucket_whole_and_the_host_only_what_is_written_to():
    layout = ZeroPartitioning(stage=2, reduce_bucket=5_000)
    backward = "forward and backward"
    assert part(estimate(layout), "gradient buckets", backward) == 4 * 900
    assert part(estimate(layout, on_gpu=True), "gradient buckets", backward) == 4 * 5_000


def test_more_ranks_and_higher_stages_never_need_more_in_training():
    def training(stage: int, ranks: int) -> int:
        whole = estimate(ZeroPartitioning(stage=stage, reduce_bucket=1, whole_below=100), num_ranks=ranks, on_gpu=True)
        return sum(p.size_bytes for p in whole.parts if "optimizer step" in p.phases and not p.on_host and p.fragments)

    assert training(2, 1) > training(2, 2) > training(2, 8)
    assert training(1, 8) >= training(2, 8) > training(3, 8)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_layout_of_every_shipped_file_is_read(path):
    tree = read_ds_config(path)
    layout = read_partitioning(tree)
    assert layout.stage == tree["zero_optimization"]["stage"]
    assert estimate(layout).peak()[1] > HOST_PROCESS_BYTES


def test_there_are_shipped_files():
    assert SHIPPED


def test_layout_takes_both_spellings_of_stage_3_and_defaults_for_auto():
    zero = {
        "stage": 3,
        "stage3_max_live_parameters": 3e8,
        "max_reuse_distance": 2e8,
        "stage3_prefetch_bucket_size": 7,
        "stage3_param_persistence_threshold": "auto",
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "none"},
    }
    layout = read_partitioning(json.loads(json.dumps({"zero_optimization": zero})))
    assert layout.most_live == 200_000_000
    assert layout.prefetch_bucket == 7
    assert layout.whole_below == 100_000
    assert layout.overlap
    assert (layout.offload_optimizer, layout.offload_parameters) == (True, False)


def test_frozen_parameters_are_not_counted_as_trained():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    sizes = sizes_of(model)
    assert (sizes.parameters, sizes.trained) == (15 + 5 + 10 + 2, 12)
