"""Throughput of a training, model FLOPs included, the padding of its audio, and the load of its nodes and GPUs.

Everything that only other ranks know rides along with the sums of a step: see ``train_step``'s ``aside``.
"""

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from math import isnan, nan

import psutil
import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.batches import Batch, StepBatches
from ccts_dist.distributed import Ranks, ranks_of_this_host
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.train.speed.flops import RowFlops

SECONDS_BETWEEN_LOOKS = 10.0
"""Between two looks at the nodes: far below what they cost, often enough to see a rank starve."""

_OF_A_NODE = ("cpu_utilization_percentage", "system_memory_usage_megabytes")
"""Figures of each node, with MLflow's names for system metrics."""

_OF_A_GPU = (
    "memory_usage_megabytes", "memory_reserved_megabytes", "utilization_percentage", "power_usage_watts"
)  # fmt: skip
"""Figures of each GPU, likewise; MLflow has no name for what torch's allocator reserves."""


class ThroughputMonitor:
    """Every rank has one; rank 0's reports the figures.

    Args:
        ranks: this process's. The first rank of each node measures processor and memory, each rank its own GPU. Where
            hosts have not equally many ranks, rank 0 measures its own host alone.
        device: this rank's.
        flops: model FLOPs of a row in a forward and backward pass; None where they are not known.
        peak_tflops: of a rank's device, in 10^12 operations per second; 0 where it is not known.
        clock: seconds, rising.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        *,
        flops: RowFlops | None = None,
        peak_tflops: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._clock = device, clock
        self._flops, self._peak_tflops, self._num_ranks = flops, peak_tflops, ranks.num_ranks
        is_even = ranks.num_nodes > 1 or ranks_of_this_host(ranks) == ranks.num_ranks
        self._num_nodes = ranks.num_nodes
        self._node = ranks.rank * ranks.num_nodes // ranks.num_ranks if is_even or ranks.is_first else None
        self._speaks_for_node = ranks.local_rank == 0
        self._decides = ranks.is_first
        self._looked_at = -SECONDS_BETWEEN_LOOKS
        self._is_due = False
        self._num_gpus = ranks.num_ranks if device.type == "cuda" else 0
        self._rank = ranks.rank
        psutil.cpu_percent()  # the next call returns how busy it was since

    def aside(self, batches: StepBatches) -> Float64[Tensor, " figures"]:
        """This rank's part of what is to be added up over ranks; as long on every rank.

        It is longer in the steps in which nodes are looked at, on which all ranks agree by the sums of the one before.
        """
        padded = sum(float(len(batch.keys) * batch.num_samples.max()) for batch in batches.micro_batches)
        counted, *moments = torch.stack([_lengths(batch) for batch in batches.micro_batches]).sum(0).tolist()
        wants_look = self._decides and self._clock() - self._looked_at >= SECONDS_BETWEEN_LOOKS
        if wants_look:
            self._looked_at = self._clock()
        looked = torch.zeros(self._num_nodes, len(_OF_A_NODE), dtype=torch.float64)
        if self._is_due and self._node is not None:
            looked[self._node] = torch.tensor(self._look(), dtype=torch.float64)
        head = torch.tensor([counted, padded, *moments, wants_look, self._is_due], dtype=torch.float64)
        gpus = torch.zeros(self._num_gpus if self._is_due else 0, len(_OF_A_GPU), dtype=torch.float64)
        if len(gpus):
            unknown = [nan] * len(_OF_A_GPU)
            own = unknown if self._node is None else _gpu_metrics(self._device)
            gpus[self._rank] = torch.tensor(own, dtype=torch.float64)
        return torch.cat([head, looked.flatten(), gpus.flatten()])

    def metrics_of(self, sums: Sequence[float], *, num_rows: int, seconds: float) -> dict[str, float]:
        """The figures of a step, by name.

        Args:
            sums: of all ranks' ``aside``.
            num_rows: utterances of the step that count.
            seconds: that the step took, reading included.
        """
        counted, padded, *moments, wants_look, looked = sums[:7]
        of_nodes = sums[7:]
        self._is_due = wants_look > 0
        metrics = {
            "train/padding": 1.0 - counted / max(1.0, padded),
            "train/audio_s": counted / SAMPLE_RATE_HZ,
            "throughput/utterances_per_s": num_rows / seconds,
            "throughput/audio_s_per_s": counted / SAMPLE_RATE_HZ / seconds,
        }
        if self._flops is not None:
            # Of real audio: a rank that computes over padding gets nothing for it.
            tflops = self._flops.of(float(num_rows), counted, *moments) / 1e12 / seconds / self._num_ranks
            metrics["throughput/tflops_per_gpu"] = tflops
            if self._peak_tflops:
                metrics["throughput/mfu"] = tflops / self._peak_tflops
        if looked > 0:
            for node in range(self._num_nodes):
                own = of_nodes[node * len(_OF_A_NODE) : (node + 1) * len(_OF_A_NODE)]
                metrics |= {f"system/node{node}/{name}": value for name, value in zip(_OF_A_NODE, own, strict=True)}
            metrics |= self._of_gpus(of_nodes[self._num_nodes * len(_OF_A_NODE) :])
        return metrics

    def _of_gpus(self, values: Sequence[float]) -> dict[str, float]:
        """Metrics of each GPU, by its node and its number there, as MLflow names it."""
        per_node = self._num_ranks // self._num_nodes
        names = [
            f"system/node{rank // per_node}/gpu_{rank % per_node}_{name}"
            for rank in range(self._num_gpus)
            for name in _OF_A_GPU
        ]
        return {name: value for name, value in zip(names, values, strict=True) if not isnan(value)}

    def _look(self) -> tuple[float, ...]:
        if not self._speaks_for_node:
            return 0.0, 0.0
        return psutil.cpu_percent(), psutil.virtual_memory().used / 1e6


def _lengths(batch: Batch) -> Float64[Tensor, "4"]:
    """Samples of the rows that count, their squares, tokens, and their squares: what ``RowFlops`` asks for."""
    counts = batch.weight > 0
    samples = batch.num_samples[counts].double()
    tokens = torch.zeros(1) if batch.num_tokens is None else batch.num_tokens[counts]
    tokens = tokens.double()
    return torch.stack([samples.sum(), samples.square().sum(), tokens.sum(), tokens.square().sum()])


def _gpu_metrics(device: torch.device) -> tuple[float, float, float, float]:
    """Metrics named in ``_OF_A_GPU``; NaN for what is not known. Waits for nothing that the GPU is doing."""
    free, total = torch.cuda.mem_get_info(device)
    used, reserved = (total - free) / 1e6, torch.cuda.max_memory_reserved(device) / 1e6
    try:
        nvml_error = import_module("pynvml").NVMLError  # nvidia-ml-py, by which torch asks the driver
    except ImportError:
        return used, reserved, nan, nan
    try:
        return used, reserved, float(torch.cuda.utilization(device)), torch.cuda.power_draw(device) / 1e3
    except (RuntimeError, nvml_error):  # a part of a GPU (MIG), or a container without the driver's library
        return used, reserved, nan, nan
