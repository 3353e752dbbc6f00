"""Time to the first token of a vision-language request, from its FLOPs and an assumed share of a device's peak."""

from dataclasses import dataclass

from patchscale.costs.hardware import named_device
from patchscale.costs.time import ASSUMED_MFU, TABLE_6
from patchscale.costs.vision_language.estimate import VisionLanguageCost
from patchscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FirstTokenTime:
    """From images and prompt to the first new token, for the whole batch."""

    seconds: float
    source: str


def first_token_time(cost: VisionLanguageCost, device: str) -> FirstTokenTime:
    """Time on a named device; raises `UserError` for an unknown one, or one without a stated peak."""
    flops_per_s, source = assumed_speed(device)
    return FirstTokenTime(seconds=cost.batch_size * cost.flops_prefill / flops_per_s, source=source)


def assumed_speed(device: str) -> tuple[float, str]:
    """(FLOP/s, where that comes from) of a named device; raises `UserError` as `first_token_time` does."""
    named = named_device(device)
    if named.peak_bf16_flops_per_s is None:
        raise UserError(f"nothing can be assumed of the speed of device {named.name}; name a GPU, such as h100")
    mfu = ASSUMED_MFU["vit"]
    return mfu * named.peak_bf16_flops_per_s, (
        f"assumed: {mfu:g} of the peak of {named.title}, {named.peak_bf16_flops_per_s / 1e12:g} TFLOP/s (bf16), "
        f"as ViT-Base reaches in training on an A100 ({TABLE_6}); loading and preparing images not included"
    )
