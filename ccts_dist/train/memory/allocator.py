"""Settings of torch's allocator of GPU memory. Imports no torch, which reads some of them when it is loaded."""

from collections.abc import MutableMapping

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables that hold them, the second an older name that wins over the first."""


def prefer_expandable_segments(environment: MutableMapping[str, str]) -> None:
    """Have blocks of GPU memory grow, unless the environment has settings of its own.

    Micro-batches of ever new lengths leave gaps between blocks of fixed sizes, which a large tensor does not fit.
    """
    if not any(name in environment for name in NAMES):
        environment[NAMES[0]] = "expandable_segments:True"
