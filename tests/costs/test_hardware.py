"""Named devices: their numbers, how names are refused, and what a driver's name says. No torch."""

import pytest

from patchscale.costs.hardware import DEVICES, PEAK_BF16_FLOPS_PER_S, is_a, named_device, peak_bf16_flops_per_s
from patchscale.errors import UserError


def test_the_a100_of_the_paper():
    a100 = named_device("a100")
    assert a100.peak_bf16_flops_per_s == 312e12
    assert a100.memory_bytes == 80 * 10**9
    assert "A100" in a100.source


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "cpu"])
def test_every_accelerator_has_the_peak_that_its_drivers_name_has(name):
    device = DEVICES[name]
    assert device.name == name
    assert device.peak_bf16_flops_per_s == PEAK_BF16_FLOPS_PER_S[device.title]
    assert peak_bf16_flops_per_s(f"NVIDIA {device.title}") == device.peak_bf16_flops_per_s
    assert 20e9 < device.memory_bytes < 200e9


def test_a_name_may_be_written_large():
    assert named_device("H100") is DEVICES["h100"]


def test_of_a_cpu_nothing_is_stated():
    assert DEVICES["cpu"].peak_bf16_flops_per_s is DEVICES["cpu"].memory_bytes is None


def test_an_unknown_name_is_refused_with_all_names():
    with pytest.raises(UserError) as caught:
        named_device("h1000", also=["my-laptop"])
    message = str(caught.value)
    assert "'h1000'" in message
    assert "my-laptop" in message
    assert all(name in message for name in DEVICES)
    assert "--calibrate" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("device_name", "name", "is_one"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", True),
        ("NVIDIA H100 PCIe", "h100", False),
        ("NVIDIA H100 PCIe", "h100-pcie", True),
        ("NVIDIA A100-SXM4-80GB", "a100", True),
        ("NVIDIA L40S", "l4", False),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100", False),
        ("Intel(R) Xeon(R) Processor", "cpu", False),
    ],
)
def test_what_a_driver_calls_it(device_name, name, is_one):
    assert is_a(device_name, DEVICES[name]) == is_one
