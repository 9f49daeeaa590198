"""The parts that a rank's memory consists of, when each is there, and their peak."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["start", "forward and backward", "optimizer step", "saving a model", "scoring the best model"]
PHASES: tuple[Phase, ...] = (
    "start",
    "forward and backward",
    "optimizer step",
    "saving a model",
    "scoring the best model",
)

HOST_FLOOR = "freed memory that the C library keeps is not in it, 0.1 to 1.1 GB where it was measured"
"""Why the host's figure is a floor. Tensors below 32 MB lie in glibc's heap, where blocks of new lengths leave gaps:
a student of 0.4 million parameters, foreseen at 0.98 GB, took 1.43 GB, and 1.17 GB with MALLOC_MMAP_THRESHOLD_=131072,
which gives such blocks back, and costs time. The demo's students, foreseen at 0.92 GB, took 1.81 to 1.88 GB, 0.85 of it
in that heap; one that was foreseen at 1.67 GB took 2.8."""

FRAGMENTATION = 0.1
"""Share on top of the tensors of a GPU, for gaps between blocks under varying lengths, and for workspaces of cuBLAS and
cuDNN. A rule of thumb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that takes memory."""

    what: str
    size_bytes: int
    why: str
    """How the size comes about, for people."""

    phases: tuple[Phase, ...] = PHASES
    """When it is there."""

    on_host: bool = False
    """In the host's memory although the model is on a GPU."""

    fragments: bool = True
    """Given out by torch's allocator, block by block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A rank's memory by parts."""

    parts: tuple[Part, ...]
    on_gpu: bool

    def peak(self, *, on_host: bool | None = None) -> tuple[Phase, int]:
        """The phase that needs most, and how many bytes; of the device that trains, unless ``on_host`` is given."""
        host = (not self.on_gpu) if on_host is None else on_host
        needs = {phase: self._needed(phase, on_host=host) for phase in PHASES}
        phase = max(PHASES, key=needs.__getitem__)
        return phase, needs[phase]

    def fragmentation(self, phase: Phase, *, on_host: bool) -> int:
        """Margin beside the tensors of a GPU in a phase; none for the host's memory."""
        if on_host or not self.on_gpu:
            return 0
        tensors = (p.size_bytes for p in self.parts if phase in p.phases and p.fragments and not p.on_host)
        return int(FRAGMENTATION * sum(tensors))

    def _needed(self, phase: Phase, *, on_host: bool) -> int:
        there = (p for p in self.parts if phase in p.phases and (p.on_host == on_host or not self.on_gpu))
        return sum(p.size_bytes for p in there) + self.fragmentation(phase, on_host=on_host)

    def table(self) -> list[str]:
        """The parts and the peak as lines for people."""
        lines = []
        for on_host in (False, True) if self.on_gpu else (True,):
            place = "on the host" if on_host else "on the GPU"
            lines.append(f"memory per rank {place:>16}      GB")
            lines += [
                f"  {part.what:30} {part.size_bytes / 1e9:7.2f}  {part.why}{_when(part)}"
                for part in self.parts
                if part.size_bytes and (part.on_host == on_host or not self.on_gpu)
            ]
            phase, most = self.peak(on_host=on_host)
            if margin := self.fragmentation(phase, on_host=on_host):
                lines.append(
                    f"  {'fragmentation':30} {margin / 1e9:7.2f}  {FRAGMENTATION:.0%} of the tensors [{phase}]"
                )
            bound, why = ("at least", f"; {HOST_FLOOR}") if on_host else ("at most", "")
            lines.append(f"  {bound:30} {most / 1e9:7.2f}  in this phase: {phase}{why}")
        return lines


def _when(part: Part) -> str:
    if part.phases in (PHASES, PHASES[1:]):
        return ""
    return f" [{', '.join(part.phases)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Most bytes alive at a time beside the weights, for the largest micro-batch."""

    training: int
    """In a forward and backward pass, gradients of weights not counted."""

    scoring: int
    """In a forward pass without gradient."""

    shape: str
    """The micro-batch, for people."""


def describe_peak(estimate: Estimate) -> str:
    """The peak in one line."""
    phase, most = estimate.peak()
    place = "of the GPU" if estimate.on_gpu else "without a GPU"
    least = "" if estimate.on_gpu else "at least "
    return f"{least}{most / 1e9:.2f} GB {place}, most in this phase: {phase}"
