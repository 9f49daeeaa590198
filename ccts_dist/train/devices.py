"""Peak performance of GPUs, as their makers state it."""

import re
from dataclasses import dataclass

import torch

from ccts_dist.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The peak figures of a kind of GPU."""

    bf16_tflops: float
    """Dense matrix products in bfloat16 with float32 sums, in 10^12 operations per second."""

    tf32_tflops: float
    fp32_tflops: float
    """Without tensor cores."""

    memory_gbyte_s: float
    """To and from its memory, in 10^9 bytes per second."""

    link_gbyte_s: float
    """To its peers within a host, one way: NVLink, else PCIe."""

    name: str
    """How its name begins, as the driver has it; a regular expression without case."""

    def peak_tflops(self, precision: str) -> float:
        """The peak in that ``train.precision``."""
        return {"bf16": self.bf16_tflops, "tf32": self.tf32_tflops, "fp32": self.fp32_tflops}[precision]


def _device(name: str, *figures: float | int) -> Device:
    bf16, tf32, fp32, memory, link = map(float, figures)
    return Device(
        name=name, bf16_tflops=bf16, tf32_tflops=tf32, fp32_tflops=fp32, memory_gbyte_s=memory, link_gbyte_s=link
    )


# From NVIDIA's data sheets, without sparsity: figures that they give with it are halved. A link's figure there counts
# both ways. GeForce: the tables of the architecture white papers (Ada, GA102: appendix A), bf16 with FP32 accumulate.
DEVICES = {
    # TFLOPS in bf16, tf32 and fp32, GB/s of memory, GB/s to a peer.
    # HGX B200 data sheet: 8 GPUs, 36 PFLOPS bf16 and 18 tf32 with sparsity, 600 TFLOPS fp32.
    "b200": _device("B200", 2_250, 1_125, 75, 8_000, 900),
    # H200 data sheet (SXM; NVL).
    "h200-nvl": _device("H200 NVL", 835.5, 417.5, 60, 4_800, 450),
    "h200": _device("H200", 989.5, 494.5, 67, 4_800, 450),
    # H100 data sheet (SXM; NVL; PCIe in its first edition).
    "h100-pcie": _device("H100 PCIe", 756.5, 378, 51, 2_000, 64),
    "h100-nvl": _device("H100 NVL", 835.5, 417.5, 60, 3_900, 300),
    "h100": _device("H100", 989.5, 494.5, 67, 3_350, 450),
    # A100 data sheet (80 GB SXM; PCIe).
    "a100-pcie": _device("A100(-PCIE| .*PCIe)", 312, 156, 19.5, 1_935, 32),
    "a100": _device("A100", 312, 156, 19.5, 2_039, 300),
    # L40S, L4, A10, RTX 6000 Ada and RTX A6000 data sheets.
    "l40s": _device("L40S", 362, 183, 91.6, 864, 32),
    "l4": _device("L4", 121, 60, 30.3, 300, 32),
    "a10": _device("A10", 125, 62.5, 31.2, 600, 32),
    "rtx6000-ada": _device("RTX 6000 Ada", 364, 182, 91.1, 960, 32),
    "a6000": _device("RTX A6000", 154.8, 77.4, 38.7, 768, 32),
    "rtx4090": _device("GeForce RTX 4090", 165.2, 82.6, 82.6, 1_008, 32),
    "rtx3090": _device("GeForce RTX 3090", 71, 35.6, 35.6, 936, 32),
}
"""By the names that people give; where one's name begins another's, the longer stands first."""


def find_device(name: str) -> Device | None:
    """The device whose name the driver gives like this; None for one that is not known, or for a part of one (MIG)."""
    if "MIG " in name:
        return None
    own = re.sub("^(NVIDIA|Tesla) ", "", name)
    return next((device for device in DEVICES.values() if re.match(rf"{device.name}\b", own, re.IGNORECASE)), None)


def named_peak(name: str) -> Device:
    """The device of that name in ``DEVICES``.

    Raises:
        ConfigError: there is none.
    """
    if name not in DEVICES:
        raise ConfigError(f"device {name!r}: no figures are known of it. Name one of {', '.join(DEVICES)}.")
    return DEVICES[name]


def peak_tflops(device: torch.device, precision: str, *, override: float = 0.0) -> float:
    """A device's peak in that precision, in 10^12 operations per second; 0 where it is not known.

    Args:
        override: ``train.peak_tflops``, which has the last word where it is not 0.
    """
    if override or device.type != "cuda":
        return override
    found = find_device(torch.cuda.get_device_name(device))
    return 0.0 if found is None else found.peak_tflops(precision)
