"""The cost model by hand-worked numbers: HuBERT-large on 8 and on 64 GPUs."""

from dataclasses import replace

import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.train.speed.cost import (
    Assumptions,
    Work,
    bytes_per_s,
    gradient_traffic,
    read_assumptions,
    scaled_rates,
    step_cost,
)
from ccts_dist.train.zero.partitioning import ZeroPartitioning

PARAMETERS = 316_000_000
ZERO2 = ZeroPartitioning(stage=2, reduce_bucket=50_000_000)
H100 = Assumptions(
    peak_tflops=989.5, compute_efficiency=0.4, link_gbyte_s=450.0, host_gbit_s=400.0, link_efficiency=0.8,
    gpus_per_host=8.0, latency_us=10.0, launch_us=20.0, step_ms=5.0,
)  # fmt: skip
KERNELS = 1_390
"""Of a forward and backward pass."""


def traffic(layout: ZeroPartitioning = ZERO2, *, num_micro_batches: int = 1, rounds: int = 1, precision: str = "bf16"):
    return gradient_traffic(
        layout,
        parameters=PARAMETERS,
        trained=PARAMETERS,
        precision=precision,
        num_micro_batches=num_micro_batches,
        rounds=rounds,
    )


def work(utterances: int) -> Work:
    """Of 5.5 s each: 0.56 TFLOP."""
    return Work(flops=utterances * 0.56e12, kernels=float(KERNELS))


def test_step_of_32_utterances_on_each_of_8_gpus_in_one_host():
    cost = step_cost(work(32), traffic(), H100, 8)
    assert cost.compute_s == pytest.approx(17.92 / (0.4 * 989.5))  # 45 ms
    assert cost.compute_s == pytest.approx(0.0453, abs=1e-4)
    # 1.9 GB in all; 7/8 of it over 360 GB/s, and 18 collectives of 3 x 10 us.
    assert cost.reduction_s == pytest.approx(1.896e9 * 7 / 8 / 360e9 + 18 * 30e-6)
    assert cost.reduction_s == pytest.approx(0.0051, abs=1e-4)
    assert cost.waits_s == pytest.approx(0.005)  # starting 1,390 kernels takes 28 ms, and the GPU is busy for longer
    assert cost.seconds == pytest.approx(0.0554, abs=1e-4)


def test_step_of_4_utterances_on_each_of_64_gpus_waits_for_its_host_and_the_network():
    cost = step_cost(work(4), traffic(), H100, 64)
    assert cost.compute_s == pytest.approx(2.24 / (0.4 * 989.5))  # 6 ms
    # 63/64 of 1.9 GB over 80 % of the host's 50 GB/s, and 18 collectives of 6 x 10 us.
    assert cost.reduction_s == pytest.approx(1.896e9 * 63 / 64 / 40e9 + 18 * 60e-6)
    assert cost.waits_s == pytest.approx(0.0278 - cost.compute_s + 0.005)
    one = step_cost(Work(flops=256 * 0.56e12, kernels=8.0 * KERNELS), traffic(num_micro_batches=8), H100, 1)
    assert one.reduction_s == 0
    efficiency = (256 / cost.seconds) / (64 * 256 / one.seconds)
    assert efficiency == pytest.approx(0.3672 / (64 * 0.0805), rel=0.01)  # 7 %


def test_ring_is_as_fast_as_its_slowest_link():
    assert bytes_per_s(H100, 8) == pytest.approx(360e9)
    assert bytes_per_s(H100, 9) == pytest.approx(40e9)
    assert bytes_per_s(replace(H100, host_gbit_s=3_200.0), 64) == pytest.approx(320e9)
    assert bytes_per_s(replace(H100, host_gbit_s=12_800.0), 64) == pytest.approx(360e9)


def test_stage_decides_what_is_moved():
    size = 2.0 * PARAMETERS
    assert (traffic().reduced, traffic().gathered, traffic().collectives) == (2 * size, size, 18)
    two = traffic(num_micro_batches=2, rounds=2)
    assert (two.reduced, two.gathered, two.collectives) == (4 * size, size, 25)
    one = traffic(replace(ZERO2, stage=1), num_micro_batches=2)
    assert (one.reduced, one.gathered, one.collectives) == (2 * size, size, 18)
    plain = traffic(replace(ZERO2, stage=0), num_micro_batches=2)
    assert (plain.reduced, plain.gathered, plain.collectives) == (2 * size, 0, 11)
    assert traffic(precision="fp32").reduced == 2 * traffic().reduced
    # 7 reductions, 7 gathers at a time, and the four small ones.
    three = ZeroPartitioning(stage=3, reduce_bucket=50_000_000, prefetch_bucket=50_000_000)
    assert (traffic(three).reduced, traffic(three).gathered, traffic(three).collectives) == (size, size, 18)
    # What may not stay is gathered for two rounds of forward passes and one of backward passes, with two micro-batches.
    dropped = traffic(replace(three, most_live=100_000_000), num_micro_batches=2, rounds=2)
    assert dropped.gathered == 6 * size


def test_overlapped_reduction_hides_behind_the_backward_pass():
    overlapped = traffic(replace(ZERO2, overlap=True))
    hidden = (
        step_cost(work(32), traffic(), H100, 64).reduction_s - step_cost(work(32), overlapped, H100, 64).reduction_s
    )
    assert hidden == pytest.approx(2 / 3 * 17.92 / 395.8)  # two thirds of computing
    assert step_cost(work(320), overlapped, H100, 64).reduction_s == pytest.approx(
        0.632e9 * 63 / 64 / 40e9 + 18 * 60e-6
    )


@pytest.mark.parametrize(
    ("stage", "num_micro_batches", "rounds", "beside"),
    [(1, 1, 1, 2 / 3), (1, 4, 1, 2 / 12), (1, 4, 2, 2 / 16), (2, 4, 1, 2 / 3), (3, 4, 2, 1 / 2)],
)
def test_reduction_runs_beside_the_backward_passes_that_it_belongs_to(stage, num_micro_batches, rounds, beside):
    layout = ZeroPartitioning(stage=stage, overlap=True)
    assert traffic(layout, num_micro_batches=num_micro_batches, rounds=rounds).beside == pytest.approx(beside)
    assert traffic(replace(layout, overlap=False), num_micro_batches=num_micro_batches, rounds=rounds).beside == 0


def test_learning_rates_go_with_the_batch_and_with_its_root():
    assert scaled_rates(5e-4, 4.0) == (2e-3, 1e-3)


def test_figures_of_a_device_are_those_of_its_data_sheet_unless_they_are_given():
    assert read_assumptions(["device=a100"]).completed("bf16").peak_tflops == 312
    assert read_assumptions([], device="l40s").completed("tf32").peak_tflops == 183
    given = read_assumptions(["peak_tflops=500", "link_gbyte_s=25", "gpus_per_host=4", "step_ms=0"]).completed("bf16")
    assert (given.peak_tflops, given.link_gbyte_s, given.gpus_per_host, given.step_ms) == (500, 25, 4, 0)
    assert "device=h100, peak_tflops=500, compute_efficiency=0.4, link_gbyte_s=25" in given.described()
    assert read_assumptions(given.described().split(", ")) == given


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("mfu=0.4", "must be KEY=VALUE, KEY one of device, peak_tflops, compute_efficiency"),
        ("peak_tflops", "must be KEY=VALUE"),
        ("device=abacus", "device 'abacus': no figures are known of it"),
        ("compute_efficiency=1.4", "must be a number between 1e-06 and 1"),
        ("busy=0", "must be a number between 1e-06 and 1"),
        ("host_gbit_s=0", "must be a number of at least 1e-06"),
        ("host_gbit_s=fast", "must be a number of at least 1e-06"),
        ("host_gbit_s=inf", "must be a number of at least 1e-06"),
        ("gpus_per_host=0.5", "must be a number of at least 1"),
        ("latency_us=-1", "must be a number of at least 0"),
        ("step_ms=nan", "must be a number of at least 0"),
    ],
)
def test_figure_that_cannot_be_is_refused(pair, words):
    with pytest.raises(ConfigError) as caught:
        read_assumptions([pair])
    assert words in str(caught.value)
