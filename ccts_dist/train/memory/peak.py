"""Peak memory of a rank, as kernel and driver counted it."""

import resource
import sys
from pathlib import Path

import torch

from ccts_dist.distributed import gather_objects


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held so far.

    On a GPU what its tensors held, without the CUDA context; else all resident memory of the process, programs and
    libraries included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_reserved_bytes(device: torch.device) -> int | None:
    """Most memory that torch's allocator has taken of a GPU so far, gaps between tensors included; None on a CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def peak_resident_bytes() -> int:
    """Most resident memory of this process so far, mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its figure outlives exec, so that a rank would inherit its launcher's.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peaks_over_ranks_gb(device: torch.device) -> tuple[float, float | None]:
    """The ranks' largest peaks so far in GB (10^9 bytes), held and reserved; the latter None on CPUs.

    Every rank must call it.
    """
    held, reserved = zip(*gather_objects((peak_memory_bytes(device), peak_reserved_bytes(device))), strict=True)
    known = [each for each in reserved if each is not None]
    return max(held) / 1e9, max(known) / 1e9 if known else None
