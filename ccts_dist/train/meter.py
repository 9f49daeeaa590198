"""How fast a training is, how much of its audio is padding, and what its nodes are busy with.

Everything that only other ranks know rides along with the sums of a step: see ``train_step``'s ``aside``.
"""

import time
from collections.abc import Callable, Sequence

import psutil
import torch
from jaxtyping import Float64
from torch import Tensor

from ccts_dist.distributed import Ranks, ranks_of_this_host
from ccts_dist.records import SAMPLE_RATE_HZ, StepBatches

SECONDS_BETWEEN_LOOKS = 10.0
"""Between two looks at the nodes: far below what they cost, often enough to see a rank starve."""

_OF_A_NODE = ("cpu_percent", "memory_gb", "gpu_memory_gb")


class Meter:
    """Every rank has one; rank 0's tells the figures.

    Args:
        ranks: this process's. The first rank of each node measures processor and memory, each rank its own GPU. Where
            hosts have not equally many ranks, rank 0 measures its own host alone.
        device: this rank's.
        clock: seconds, rising.
    """

    def __init__(self, ranks: Ranks, device: torch.device, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._device, self._clock = device, clock
        is_even = ranks.num_nodes > 1 or ranks_of_this_host(ranks) == ranks.num_ranks
        self._num_nodes = ranks.num_nodes
        self._node = ranks.rank * ranks.num_nodes // ranks.num_ranks if is_even or ranks.is_first else None
        self._speaks_for_node = ranks.local_rank == 0
        self._decides = ranks.is_first
        self._looked_at = -SECONDS_BETWEEN_LOOKS
        self._is_due = False
        self._num_gpus = ranks.num_ranks if device.type == "cuda" else 0
        psutil.cpu_percent()  # the next call says how busy it was since

    def aside(self, batches: StepBatches) -> Float64[Tensor, " figures"]:
        """This rank's part of what is to be added up over ranks; as long on every rank."""
        counted = padded = 0.0
        for batch in batches.passes:
            counted += float(batch.num_samples[batch.weight > 0].sum())
            padded += float(len(batch.keys) * batch.num_samples.max())
        wants_look = self._decides and self._clock() - self._looked_at >= SECONDS_BETWEEN_LOOKS
        if wants_look:
            self._looked_at = self._clock()
        looked = torch.zeros(self._num_nodes, len(_OF_A_NODE), dtype=torch.float64)
        if self._is_due and self._node is not None:
            looked[self._node] = torch.tensor(self._look(), dtype=torch.float64)
        head = torch.tensor([counted, padded, wants_look, self._is_due], dtype=torch.float64)
        return torch.cat([head, looked.flatten()])

    def heard(self, sums: Sequence[float], *, num_rows: int, seconds: float) -> dict[str, float]:
        """The figures of a step, by name.

        Args:
            sums: of all ranks' ``aside``.
            num_rows: utterances of the step that count.
            seconds: that the step took, reading included.
        """
        counted, padded, wants_look, looked, *of_nodes = sums
        self._is_due = wants_look > 0
        figures = {
            "train/padding": 1.0 - counted / max(1.0, padded),
            "train/audio_s": counted / SAMPLE_RATE_HZ,
            "train/utterances_per_s": num_rows / seconds,
            "train/audio_s_per_s": counted / SAMPLE_RATE_HZ / seconds,
        }
        if looked > 0:
            for node in range(self._num_nodes):
                own = of_nodes[node * len(_OF_A_NODE) : (node + 1) * len(_OF_A_NODE)]
                figures |= {
                    f"system/node{node}_{name}": value
                    for name, value in zip(_OF_A_NODE, own, strict=True)
                    if self._num_gpus or not name.startswith("gpu")
                }
        return figures

    def _look(self) -> tuple[float, ...]:
        cpu_percent = memory_gb = gpu_memory_gb = 0.0
        if self._speaks_for_node:
            cpu_percent, memory_gb = psutil.cpu_percent(), psutil.virtual_memory().used / 1e9
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            gpu_memory_gb = (total - free) / 1e9
        return cpu_percent, memory_gb, gpu_memory_gb
