"""Speed, padding, and what the nodes are busy with, by hand-worked numbers."""

from collections.abc import Iterator

import psutil
import pytest
import torch

from ccts_dist.distributed import Ranks
from ccts_dist.records import Batch, StepBatches
from ccts_dist.train.meter import Meter

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


BATCHES = StepBatches(epoch=0, step=0, passes=(batch([16_000, 8_000], [1.0, 1.0]), batch([4_000, 4_000], [1.0, 0.0])))
"""Of 40,000 samples 28,000 count: 1.75 s; the row of weight 0 is padding."""


def steps(meters: list[Meter], clock: Clock, seconds: list[float]) -> Iterator[dict[str, float]]:
    """What the first rank tells of one step after the other, of that length each."""
    for took in seconds:
        sums = torch.stack([meter.aside(BATCHES) for meter in meters]).sum(0).tolist()
        clock.now += took
        told = [meter.heard(sums, num_rows=3 * len(meters), seconds=took) for meter in meters]
        assert all(one == told[0] for one in told), "ranks hear the same"
        yield told[0]


def test_padding_and_speed_are_of_all_ranks() -> None:
    clock = Clock()
    meters = [Meter(Ranks(rank=rank, num_ranks=2, local_rank=rank), CPU, clock=clock) for rank in (0, 1)]
    (told,) = steps(meters, clock, [0.5])
    assert told == pytest.approx(
        {"train/padding": 0.3, "train/audio_s": 3.5, "train/utterances_per_s": 12.0, "train/audio_s_per_s": 7.0}
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
        Meter(Ranks(rank=rank, num_ranks=4, local_rank=rank % 2, num_nodes=2), CPU, clock=clock) for rank in range(4)
    ]
    told = list(steps(meters, clock, [4.0] * 5))
    looked = [{name: value for name, value in step.items() if name.startswith("system/")} for step in told]
    expected = {
        "system/node0_cpu_percent": 25.0, "system/node0_memory_gb": 5.0,
        "system/node1_cpu_percent": 75.0, "system/node1_memory_gb": 7.0,
    }  # fmt: skip
    # Decided on in the first step and after twelve seconds, done in the step that follows.
    assert looked == [{}, expected, {}, {}, expected]


def test_where_hosts_have_not_equally_many_ranks_the_first_host_is_told_of_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    clock = Clock()
    meters = [Meter(Ranks(rank=rank, num_ranks=3, local_rank=rank % 2), CPU, clock=clock) for rank in range(3)]
    _, told = steps(meters, clock, [1.0, 1.0])
    assert told["system/node0_memory_gb"] < psutil.virtual_memory().total / 1e9
    assert told["system/node0_memory_gb"] > 0
    assert "system/node1_memory_gb" not in told
