"""The memory layout of a model: the sizes of its parameters, and what a ds_config does with them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """How many numbers each parameter of a model holds."""

    numels: tuple[int, ...]
    trained_numels: tuple[int, ...]
    mapped: int = 0
    """Numbers that are read from a mapped file: those of pretrained encoders."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(self.numels)

    @property
    def trained(self) -> int:
        """Number of parameters that an optimizer moves."""
        return sum(self.trained_numels)

    def below(self, threshold: int) -> int:
        """Number of parameters in tensors with at most so many numbers; ZeRO-3 leaves those whole."""
        return sum(numel for numel in self.numels if numel <= threshold)


def sizes_of(model: nn.Module, *, pretrained: Iterable[nn.Module] = ()) -> ModelSizes:
    """The sizes of a model's parameters, before an engine has taken them apart.

    Args:
        pretrained: those of its encoders that were read from files.
    """
    parameters = list(model.parameters())
    return ModelSizes(
        mapped=sum(p.numel() for encoder in pretrained for p in encoder.parameters()),
        numels=tuple(p.numel() for p in parameters),
        trained_numels=tuple(p.numel() for p in parameters if p.requires_grad),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroPartitioning:
    """Memory settings of a ds_config; sizes are numbers of elements."""

    stage: int
    offload_optimizer: bool = False
    """Optimizer state, master weights and gradients in the host's memory."""

    offload_parameters: bool = False
    """The partitioned weights in the host's memory (stage 3)."""

    reduce_bucket: int = 500_000_000
    overlap: bool = False
    """Two gradient buckets instead of one."""

    prefetch_bucket: int = 50_000_000
    whole_below: int = 100_000
    """Parameters up to this size are not partitioned at stage 3."""

    most_live: int = 1_000_000_000
    """Gathered parameters that stage 3 keeps at a time."""

    sub_group: int = 1_000_000_000
    """Elements that stage 3 updates at a time."""


def read_partitioning(tree: Mapping[str, Any]) -> ZeroPartitioning:
    """The layout that a ds_config describes, with DeepSpeed's defaults for what it leaves out or to "auto"."""
    zero = tree["zero_optimization"]

    def number(name: str, default: int) -> int:
        value = zero.get(name, zero.get(f"stage3_{name}", default))
        return int(value) if isinstance(value, int | float) else default

    def is_offloaded(name: str) -> bool:
        device = (zero.get(name) or {}).get("device", "none")
        return device not in ("none", None)

    stage = int(zero["stage"])
    overlap = zero.get("overlap_comm")
    defaults = ZeroPartitioning(stage=stage)
    return ZeroPartitioning(
        stage=stage,
        offload_optimizer=is_offloaded("offload_optimizer"),
        offload_parameters=is_offloaded("offload_param"),
        reduce_bucket=number("reduce_bucket_size", defaults.reduce_bucket),
        overlap=stage == 3 if overlap is None else bool(overlap),
        prefetch_bucket=number("prefetch_bucket_size", defaults.prefetch_bucket),
        whole_below=number("param_persistence_threshold", defaults.whole_below),
        most_live=min(
            number("max_live_parameters", defaults.most_live), number("max_reuse_distance", defaults.most_live)
        ),
        sub_group=number("sub_group_size", defaults.sub_group) or defaults.sub_group,
    )
