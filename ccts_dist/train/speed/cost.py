"""A cost model of a training step on many GPUs, from numbers alone.

A step is the computing of its slowest rank, the reduction of the gradients over all ranks, and the waits of a GPU for
its host. Collectives go around a ring, as NCCL's do for large tensors: of a tensor of S bytes an all-reduce moves
2 S (n - 1) / n over every link, a reduce-scatter or an all-gather half of that (Patarasuk and Yuan 2009). Between hosts
the ring is as fast as all network adapters of a host together, or as the links within if those are slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, inf, log2, nan

from ccts_dist.errors import ConfigError
from ccts_dist.train.devices import named_peak
from ccts_dist.train.zero.partitioning import ZeroPartitioning

_SMALL_COLLECTIVES = 4
"""Small collectives of each step: the loss's sums, whether a gradient overflowed, and the norms of two groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Figures of the machines; none is measured unless somebody has put it in."""

    device: str = "h100"
    """A GPU of ``train.devices``, whose data sheet gives what is 0 below."""

    peak_tflops: float = 0.0
    compute_efficiency: float = 0.4
    """Share of the peak that the kernels reach while they run. Take a measured ``throughput/mfu`` of one GPU."""

    link_gbyte_s: float = 0.0
    """From a GPU to its peers within a host, one way, in 10^9 bytes per second."""

    host_gbit_s: float = 400.0
    """Bandwidth of all network adapters of a host together, one way, in 10^9 bits per second."""

    link_efficiency: float = 0.8
    """Share of both that large collectives reach."""

    gpus_per_host: float = 8.0
    latency_us: float = 10.0
    """Latency of a collective, for each doubling of the ranks."""

    launch_us: float = 20.0
    """That a host takes to start a kernel: Python, autograd and the hooks of DeepSpeed."""

    step_ms: float = 5.0
    """Fixed time of each step in which the GPU waits for its host: reading ahead, figures, the optimizer's update."""

    busy: float = 0.8
    """Parallel efficiency that is asked of a global batch."""

    def completed(self, precision: str) -> "Assumptions":
        """With the device's own figures for those that are 0."""
        device = named_peak(self.device)
        return replace(
            self,
            peak_tflops=self.peak_tflops or device.peak_tflops(precision),
            link_gbyte_s=self.link_gbyte_s or device.link_gbyte_s,
        )

    def described(self) -> str:
        """All of them, for people, as ``read_assumptions`` takes them."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{name}={value if isinstance(value, str) else format(value, 'g')}" for name, value in values)


def read_assumptions(pairs: Sequence[str], *, device: str = "h100") -> Assumptions:
    """The assumptions with those that ``pairs`` like ``"host_gbit_s=3200"`` change.

    Raises:
        ConfigError: no such figure or device, or a number that it cannot be.
    """
    found = Assumptions(device=device)
    known = [f.name for f in fields(Assumptions)]
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"--assume {pair!r}: must be KEY=VALUE, KEY one of {', '.join(known)}. Change it.")
        if name == "device":
            named_peak(text)
            found = replace(found, device=text)
            continue
        least, most = _RANGES.get(name, (_SMALLEST, inf))
        try:
            value = float(text)
        except ValueError:
            value = nan
        if not least <= value <= most or value == inf:
            rule = f"a number of at least {least:g}" if most == inf else f"a number between {least:g} and {most:g}"
            raise ConfigError(f"--assume {pair}: must be {rule}. Change it.")
        found = replace(found, **{name: value})
    return found


_SMALLEST = 1e-6

_RANGES: dict[str, tuple[float, float]] = {
    "compute_efficiency": (_SMALLEST, 1.0),
    "link_efficiency": (_SMALLEST, 1.0),
    "busy": (_SMALLEST, 1.0),
    "gpus_per_host": (1.0, inf),
    "latency_us": (0.0, inf),
    "launch_us": (0.0, inf),
    "step_ms": (0.0, inf),
}
"""Ranges of figures that are not just above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A step on the rank that has most to do."""

    flops: float
    """Operations that its device executes, repeated ones included."""

    kernels: float
    """That its host starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that a step's collectives move over each link, but for the factor (n - 1) / n."""

    reduced: float
    gathered: float
    collectives: int
    beside: float
    """Share of the computing that the reduction may run beside: that of the backward passes which it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of a step by what they go to."""

    compute_s: float
    reduction_s: float
    """Part that is not hidden behind computing."""

    waits_s: float
    """The GPU has nothing to do, since its host is not ready."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.compute_s + self.reduction_s + self.waits_s


def gradient_traffic(
    partitioning: ZeroPartitioning,
    *,
    parameters: int,
    trained: int,
    precision: str,
    num_micro_batches: int,
    rounds: int,
) -> Traffic:
    """Bytes that DeepSpeed 0.19 moves for a step.

    At stage 2 it all-reduces each bucket in every micro-batch and keeps its part (``use_multi_rank_bucket_allreduce``);
    at stages 0 and 1 it does so once a step. Stages 1 and 2 gather the weights that were moved.

    Args:
        parameters: numbers of the model, of which ``trained`` are moved.
        num_micro_batches: micro-batches of each rank.
        rounds: of forward passes; 2 where a first one collects the predictions.
    """
    size = 2 if precision == "bf16" else 4
    buckets = ceil(trained / partitioning.reduce_bucket)
    reductions = num_micro_batches if partitioning.stage >= 2 else 1
    # A backward pass takes two units, a forward pass of each round one. Where gradients are added up first, they are
    # reduced in the last micro-batch alone.
    beside = 2 / (2 + rounds) * reductions / num_micro_batches if partitioning.overlap else 0.0
    if partitioning.stage < 3:
        return Traffic(
            reduced=2.0 * size * trained * reductions,
            gathered=float(size * trained) if partitioning.stage else 0.0,
            collectives=buckets * reductions + (buckets if partitioning.stage else 0) + _SMALL_COLLECTIVES,
            beside=beside,
        )
    # Weights are gathered once where all may stay, else before each forward and each backward pass.
    gathers = 1 if parameters <= partitioning.most_live else num_micro_batches * (rounds + 1)
    return Traffic(
        reduced=float(size * trained * num_micro_batches),
        gathered=float(size * parameters * gathers),
        collectives=buckets * num_micro_batches
        + ceil(parameters / partitioning.prefetch_bucket) * gathers
        + _SMALL_COLLECTIVES,
        beside=beside,
    )


def step_cost(work: Work, traffic: Traffic, assumed: Assumptions, num_ranks: int) -> StepCost:
    """A step by what its seconds go to; ``assumed`` must be ``completed``."""
    compute = work.flops / (assumed.peak_tflops * 1e12 * assumed.compute_efficiency)
    late = max(0.0, work.kernels * assumed.launch_us / 1e6 - compute)
    reduction = 0.0
    if num_ranks > 1:
        ring = (num_ranks - 1) / num_ranks / bytes_per_s(assumed, num_ranks)
        latency = traffic.collectives * assumed.latency_us / 1e6 * log2(num_ranks)
        reduction = max(0.0, traffic.reduced * ring - traffic.beside * compute) + traffic.gathered * ring + latency
    return StepCost(compute_s=compute, reduction_s=reduction, waits_s=late + assumed.step_ms / 1e3)


def bytes_per_s(assumed: Assumptions, num_ranks: int) -> float:
    """How fast a ring over so many ranks is."""
    link = assumed.link_gbyte_s
    if num_ranks > assumed.gpus_per_host:
        link = min(link, assumed.host_gbit_s / 8)
    return 1e9 * link * assumed.link_efficiency


def scaled_rates(rate: float, factor: float) -> tuple[float, float]:
    """A learning rate for a global batch of ``factor`` times the utterances: by the linear and the square-root rule.

    Linear for SGD (Goyal et al. 2017), the square root for Adam (Malladi et al. 2022). Both are suggestions.
    """
    return rate * factor, rate * factor**0.5
