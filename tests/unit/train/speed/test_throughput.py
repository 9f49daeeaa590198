"""Speed, padding, and what the nodes are busy with, by hand-worked numbers."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ccts_dist.batches import Batch, StepBatches
from ccts_dist.distributed import Ranks
from ccts_dist.train.speed.flops import RowFlops
from ccts_dist.train.speed.throughput import _OF_A_GPU, _OF_A_NODE, ThroughputMonitor

CPU = torch.device("cpu")


class Clock:
    """Stands still until it is moved on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def batch(lengths: list[int], weights: list[float]) -> Batch:
    return Batch(
        keys=tuple(map(str, lengths)),
        audio=torch.zeros(len(lengths), max(lengths)),
        num_samples=torch.tensor(lengths),
        labels=torch.zeros(len(lengths), 3),
        weight=torch.tensor(weights),
    )


BATCHES = StepBatches(
    epoch=0, step=0, micro_batches=(batch([16_000, 8_000], [1.0, 1.0]), batch([4_000, 4_000], [1.0, 0.0]))
)
"""Of 40,000 samples 28,000 count: 1.75 s; the row of weight 0 is padding."""


def steps(meters: list[ThroughputMonitor], clock: Clock, seconds: list[float]) -> Iterator[dict[str, float]]:
    """What the first rank reports of one step after the other, of that length each."""
    for took in seconds:
        sums = torch.stack([meter.aside(BATCHES) for meter in meters]).sum(0).tolist()
        clock.now += took
        reported = [meter.metrics_of(sums, num_rows=3 * len(meters), seconds=took) for meter in meters]
        assert all(one == reported[0] for one in reported), "ranks read the same"
        yield reported[0]


def test_padding_and_speed_are_of_all_ranks() -> None:
    clock = Clock()
    meters = [ThroughputMonitor(Ranks(rank=rank, num_ranks=2, local_rank=rank), CPU, clock=clock) for rank in (0, 1)]
    (reported,) = steps(meters, clock, [0.5])
    assert reported == pytest.approx(
        {
            "train/padding": 0.3,
            "train/audio_s": 3.5,
            "throughput/utterances_per_s": 12.0,
            "throughput/audio_s_per_s": 7.0,
        }
    )


def test_every_node_is_looked_at_by_its_first_rank_at_the_same_step_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    used = iter([5_000_000_000, 7_000_000_000] * 3)
    busy = iter([0.0] * 4 + [25.0, 75.0] * 3)  # each meter asks once when it is made
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(busy))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"used": next(used)}))
    clock = Clock()
    meters = [
        ThroughputMonitor(Ranks(rank=rank, num_ranks=4, local_rank=rank % 2, num_nodes=2), CPU, clock=clock)
        for rank in range(4)
    ]
    reported = list(steps(meters, clock, [4.0] * 5))
    looked = [{name: value for name, value in step.items() if name.startswith("system/")} for step in reported]
    expected = {
        "system/node0/cpu_utilization_percentage": 25.0, "system/node0/system_memory_usage_megabytes": 5_000.0,
        "system/node1/cpu_utilization_percentage": 75.0, "system/node1/system_memory_usage_megabytes": 7_000.0,
    }  # fmt: skip
    # Decided on in the first step and after twelve seconds, done in the step that follows.
    assert looked == [{}, expected, {}, {}, expected]


def test_where_hosts_have_not_equally_many_ranks_the_first_host_is_reported_of_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    clock = Clock()
    meters = [
        ThroughputMonitor(Ranks(rank=rank, num_ranks=3, local_rank=rank % 2), CPU, clock=clock) for rank in range(3)
    ]
    _, reported = steps(meters, clock, [1.0, 1.0])
    assert reported["system/node0/system_memory_usage_megabytes"] < psutil.virtual_memory().total / 1e6
    assert reported["system/node0/system_memory_usage_megabytes"] > 0
    assert "system/node1/system_memory_usage_megabytes" not in reported


def test_model_flops_are_of_real_audio_and_transcripts_per_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    flops = RowFlops(base=1e9, per_sample=1e8, per_squared_sample=1e4, per_token=1e10, per_squared_token=1e9)
    read = replace(batch([16_000, 8_000, 30_000], [1.0, 1.0, 0.0]), num_tokens=torch.tensor([5, 3, 9]))
    monkeypatch.setitem(globals(), "BATCHES", StepBatches(epoch=0, step=0, micro_batches=(read,)))
    meters = [
        ThroughputMonitor(Ranks(rank=rank, num_ranks=2), CPU, flops=flops, peak_tflops=20.0, clock=clock)
        for rank in (0, 1)
    ]
    sums = torch.stack([meter.aside(BATCHES) for meter in meters]).sum(0).tolist()
    reported = meters[0].metrics_of(sums, num_rows=4, seconds=0.5)
    # On each rank 2 rows: 2e9, 24,000 samples: 2.4e12, 16,000^2 + 8,000^2: 3.2e12, 8 tokens: 8e10, 25 + 9: 3.4e10.
    assert reported["throughput/tflops_per_gpu"] == pytest.approx(2 * (0.002 + 2.4 + 3.2 + 0.08 + 0.034))
    assert reported["throughput/mfu"] == pytest.approx(2 * 5.716 / 20)


def test_without_a_known_peak_there_is_no_share_of_it() -> None:
    flops = RowFlops(base=0.0, per_sample=1e8, per_squared_sample=0.0)
    meter = ThroughputMonitor(Ranks(), CPU, flops=flops)
    reported = meter.metrics_of(meter.aside(BATCHES).tolist(), num_rows=3, seconds=2.0)
    assert reported["throughput/tflops_per_gpu"] == pytest.approx(28_000 * 1e8 / 1e12 / 2)
    assert "throughput/mfu" not in reported


GPU = torch.device("cuda", 0)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, **activity: Callable[[torch.device], float]) -> None:
    """A GPU of which torch states these things; without ``activity`` as where nvidia-ml-py is not installed."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 61_000_000_000)
    for name, answer in activity.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    library = SimpleNamespace(NVMLError=NvmlError) if activity else None
    monkeypatch.setitem(sys.modules, "pynvml", library)


class NvmlError(Exception):
    """What nvidia-ml-py raises."""


def gpu_metrics(num_nodes: int) -> dict[str, float]:
    """What four ranks with a GPU each report of GPUs in the step that looks."""
    clock = Clock()
    meters = [
        ThroughputMonitor(
            Ranks(rank=rank, num_ranks=4, local_rank=rank * num_nodes % 4, num_nodes=num_nodes), GPU, clock=clock
        )
        for rank in range(4)
    ]
    assert len({len(meter.aside(BATCHES)) for meter in meters}) == 1
    meters[0]._looked_at = 0.0
    _, reported = steps(meters, clock, [1.0, 1.0])
    return {name: value for name, value in reported.items() if "/gpu_" in name}


def test_each_gpu_is_reported_of_by_node_under_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    pretend_gpu(monkeypatch, utilization=lambda _: 87, power_draw=lambda _: 512_500)
    reported = gpu_metrics(num_nodes=2)
    of_one = {
        "memory_usage_megabytes": 77_000.0,
        "memory_reserved_megabytes": 61_000.0,
        "utilization_percentage": 87.0,
        "power_usage_watts": 512.5,
    }
    assert reported == {
        f"system/node{node}/gpu_{gpu}_{name}": value
        for node in (0, 1)
        for gpu in (0, 1)
        for name, value in of_one.items()
    }


def test_without_nvidias_library_the_memory_alone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    pretend_gpu(monkeypatch)
    assert gpu_metrics(num_nodes=1) == {
        f"system/node0/gpu_{gpu}_memory_{of}_megabytes": value
        for gpu in range(4)
        for of, value in (("usage", 77_000.0), ("reserved", 61_000.0))
    }


def test_what_a_driver_refuses_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: torch.device) -> float:
        raise NvmlError("Not Supported")

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    pretend_gpu(monkeypatch, utilization=refuse, power_draw=lambda _: 512_500)
    assert set(gpu_metrics(num_nodes=1).values()) == {77_000.0, 61_000.0}


def test_names_are_those_of_mlflows_own_monitor() -> None:
    mlflow = find_spec("mlflow")  # not imported, which takes seconds
    assert mlflow is not None
    assert mlflow.origin is not None
    folder = Path(mlflow.origin).parent / "system_metrics/metrics"
    of_gpus, of_nodes = ((folder / f"{kind}_monitor.py").read_text(encoding="utf-8") for kind in ("gpu", "cpu"))
    assert set(_OF_A_GPU) - {name for name in _OF_A_GPU if f"gpu_{{i}}_{name}" in of_gpus} == {
        "memory_reserved_megabytes"
    }
    assert all(f'"{name}"' in of_nodes for name in _OF_A_NODE)
