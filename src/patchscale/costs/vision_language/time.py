"""Time to the first token of a vision-language request, from its FLOPs and an assumed share of a device's peak."""

from dataclasses import dataclass

from patchscale.costs.hardware import DEVICES
from patchscale.costs.profile import list_profiles
from patchscale.costs.time import ASSUMED_MFU, TABLE_6
from patchscale.costs.vision_language.estimate import VisionLanguageCost
from patchscale.costs.vision_language.inference_memory import BYTES
from patchscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FirstTokenTime:
    """From images and prompt to the first new token, for the whole batch."""

    seconds: float
    source: str


def first_token_time(cost: VisionLanguageCost, device: str) -> FirstTokenTime:
    """Time on a named device.

    Raises `UserError` for an unknown device, one without a stated peak, and for fp32, of which no peak is known.
    """
    flops_per_s, source = assumed_speed(device)
    if cost.precision == "fp32":
        raise UserError(f"the speed of {device} in fp32 is not known, only in bf16; choose that, or no device")
    if cost.weights_bytes != BYTES[cost.precision] * cost.params_total:
        source += "; arithmetic with quantized weights is taken to be bf16"
    return FirstTokenTime(seconds=cost.batch_size * cost.flops_prefill / flops_per_s, source=source)


def assumed_speed(device: str) -> tuple[float, str]:
    """(FLOP/s, where that comes from) of a named device; raises `UserError` as `first_token_time` does."""
    named = DEVICES.get(device.lower())
    gpus = ", ".join(name for name, each in DEVICES.items() if each.peak_bf16_flops_per_s is not None)
    if named is None:
        profile = "; it is a profile, and profiles hold no speed of these models" if device in list_profiles() else ""
        raise UserError(f"device {device!r} is not known for vision-language models{profile}; choose one of {gpus}")
    if named.peak_bf16_flops_per_s is None:
        raise UserError(f"nothing can be assumed of the speed of device {named.name}; choose one of {gpus}")
    mfu = ASSUMED_MFU["vit"]
    return mfu * named.peak_bf16_flops_per_s, (
        f"assumed: {mfu:g} of the peak of {named.title}, {named.peak_bf16_flops_per_s / 1e12:g} TFLOP/s (bf16), "
        f"as ViT-Base reaches in training on an A100 ({TABLE_6}); loading and preparing images not included"
    )
