"""Peak speed of accelerators: what achieved FLOP/s are divided by (model FLOPs utilisation, MFU). No torch."""

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
