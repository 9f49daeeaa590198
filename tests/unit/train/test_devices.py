"""Peaks of GPUs by the names that drivers give them."""

import pytest
import torch

from ccts_dist.errors import ConfigError
from ccts_dist.train.devices import DEVICES, find_device, named_peak, peak_tflops


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
    ],
)
def test_driver_name_finds_its_device(name, key):
    assert find_device(name) == DEVICES[key]


def test_every_device_has_a_driver_name_in_the_test_above():
    (mark,) = (mark for mark in test_driver_name_finds_its_device.pytestmark if mark.name == "parametrize")
    assert {key for _, key in mark.args[1]} == set(DEVICES)


@pytest.mark.parametrize(
    "name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A10G", "NVIDIA A1000", "NVIDIA L40", "Tesla T4", "AMD MI300X"]
)
def test_other_devices_have_no_peak(name):
    assert find_device(name) is None


def test_peak_is_of_the_precision_unless_the_run_file_has_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    gpu = torch.device("cuda", 1)
    assert peak_tflops(gpu, "bf16") == 989.5
    assert peak_tflops(gpu, "tf32") == 494.5
    assert peak_tflops(gpu, "fp32") == 67
    assert peak_tflops(gpu, "bf16", override=700.0) == 700
    assert peak_tflops(torch.device("cpu"), "fp32") == 0
    assert peak_tflops(torch.device("cpu"), "fp32", override=0.1) == 0.1


def test_tensor_cores_are_faster_than_what_they_are_made_of():
    for device in DEVICES.values():
        assert device.bf16_tflops >= 1.9 * device.tf32_tflops
        assert device.tf32_tflops >= device.fp32_tflops


def test_unknown_device_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"device 'h1000'.*h100, "):
        named_peak("h1000")
