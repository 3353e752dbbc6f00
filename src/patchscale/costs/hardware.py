"""Devices by name: their stated peak speed, which achieved FLOP/s are divided by (MFU), and their memory. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from patchscale.errors import UserError

PEAK_BF16_FLOPS_PER_S: dict[str, float] = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,  # also in the name of GH200, whose GPU has the same rate
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,  # SXM: "NVIDIA H100 80GB HBM3"
    "A100": 312e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 matrix products with float32 accumulation, FLOP/s, by a part of the device's name; first match wins.

Source: NVIDIA's data sheets of each product, without structured sparsity (half of the rate where only the sparse one is
printed); for the GeForce cards NVIDIA's Ada and Ampere architecture whitepapers.
"""


def peak_bf16_flops_per_s(device_name: str) -> float | None:
    """The stated peak of a device by its name; None if it is not in the table, or only a slice of the device (MIG)."""
    if " MIG " in device_name:
        return None
    return next((peak for part, peak in PEAK_BF16_FLOPS_PER_S.items() if part in device_name), None)


@dataclass(frozen=True, kw_only=True)
class NamedDevice:
    """A device that a cost can be asked for without having it; None is what cannot be stated for all of its kind."""

    name: str
    title: str
    """The product; for NVIDIA's also the key in `PEAK_BF16_FLOPS_PER_S`."""
    peak_bf16_flops_per_s: float | None
    memory_bytes: int | None
    """GB of the data sheet as 10^9 bytes: what drivers and error correction leave free is a little more than that."""
    source: str


def _nvidia(name: str, title: str, memory_gb: int, source: str) -> NamedDevice:
    return NamedDevice(
        name=name,
        title=title,
        peak_bf16_flops_per_s=PEAK_BF16_FLOPS_PER_S[title],
        memory_bytes=memory_gb * 10**9,
        source=source,
    )


DEVICES: dict[str, NamedDevice] = {
    device.name: device
    for device in (
        _nvidia("b200", "B200", 180, "NVIDIA HGX B200 data sheet (eight of them: 1.44 TB)"),
        _nvidia("h200", "H200", 141, "NVIDIA H200 data sheet, SXM"),
        _nvidia("h100", "H100", 80, "NVIDIA H100 data sheet, SXM"),
        _nvidia("h100-pcie", "H100 PCIe", 80, "NVIDIA H100 data sheet, PCIe"),
        _nvidia("a100", "A100", 80, "NVIDIA A100 80GB data sheet"),
        _nvidia("a100-40gb", "A100", 40, "NVIDIA A100 40GB data sheet"),
        _nvidia("a30", "A30", 24, "NVIDIA A30 data sheet"),
        _nvidia("l40s", "L40S", 48, "NVIDIA L40S data sheet"),
        _nvidia("l40", "L40", 48, "NVIDIA L40 data sheet"),
        _nvidia("l4", "L4", 24, "NVIDIA L4 data sheet"),
        _nvidia("rtx4090", "RTX 4090", 24, "NVIDIA Ada GPU architecture whitepaper"),
        _nvidia("rtx3090", "RTX 3090", 24, "NVIDIA Ampere GA102 GPU architecture whitepaper"),
        NamedDevice(
            name="cpu", title="CPU", peak_bf16_flops_per_s=None, memory_bytes=None, source="processors differ too much"
        ),
    )
}
"""Devices by the name that `--device` takes."""


def named_device(name: str, *, also: Sequence[str] = ()) -> NamedDevice:
    """The device of that name, in any case; raises `UserError` listing all names, and those in `also`."""
    device = DEVICES.get(name.lower())
    if device is None:
        profiles = f", or a profile of your own ({', '.join(also)})" if also else ""
        raise UserError(
            f"device {name!r} is not known; choose one of {', '.join(DEVICES)}{profiles}; "
            "or measure the one you have: patchscale cost --calibrate"
        )
    return device


def is_a(device_name: str, named: NamedDevice) -> bool:
    """Whether what a driver calls `device_name` ("NVIDIA H100 80GB HBM3") is that device, whole, by its speed."""
    if " MIG " in device_name:
        return False
    return next((part for part in PEAK_BF16_FLOPS_PER_S if part in device_name), None) == named.title
