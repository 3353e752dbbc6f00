"""The largest image for a budget: from memory, FLOPs or latency back to pixels, tokens and the setting to use."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf
from typing import Any

from patchscale.costs.vision_language.estimate import VisionLanguageCost, estimate_vision_language_cost
from patchscale.costs.vision_language.image_tokens import VisualTokens
from patchscale.costs.vision_language.models import VisionLanguageModel, get_model
from patchscale.errors import UserError

LONG_SIDE = 2**18
"""Pixels of the picture that is shrunk under every cap; so large that the cap alone decides."""

MAX_ASPECT_RATIO = 1000
"""Of the longer side to the shorter: the picture above is given as a ratio of two numbers up to this."""

ADVICE = "give more, or take a smaller model, fewer images or fewer bytes per weight"


class BudgetTooSmallError(UserError):
    """Not even the smallest image fits."""

    def __init__(self, message: str, *, smallest: str, needs: dict[str, tuple[float, float]]):
        super().__init__(message)
        self.smallest = smallest
        """Model and size of the smallest image."""
        self.needs = needs
        """(what it needs, what was given) by budget."""


def huge_picture(aspect_ratio: float) -> tuple[int, int]:
    """(height, width) with exactly that ratio of width to height, if it is one of two numbers up to 1,000."""
    if not 1 / MAX_ASPECT_RATIO <= aspect_ratio <= MAX_ASPECT_RATIO:
        raise UserError(
            f"aspect_ratio={aspect_ratio}: give width / height, from {1 / MAX_ASPECT_RATIO} to {MAX_ASPECT_RATIO}"
        )
    if aspect_ratio < 1:
        return huge_picture(1 / aspect_ratio)[::-1]
    ratio = Fraction(aspect_ratio).limit_denominator(1000)
    times = max(1, round(LONG_SIDE / ratio.numerator))
    return times * ratio.denominator, times * ratio.numerator


@dataclass(frozen=True, kw_only=True)
class LargestImage:
    """The answer, and how to hold a real processor to it."""

    img_size: tuple[int, int]
    """(height, width) after resizing; larger images of this shape are shrunk to it."""
    cap_name: str
    """The setting of the family's processor that limits an image."""
    cap: Any
    """Its value: the smallest that gives `img_size` for this shape."""
    binds: tuple[str, ...]
    """The budgets that one step more would exceed; `cap_name` if the model's own limit came first."""
    cost: VisionLanguageCost

    @property
    def visual(self) -> VisualTokens:
        """Tokens of one such image."""
        return self.cost.visual

    def __str__(self) -> str:
        height, width = self.img_size
        limit = f"the model's own {self.cap_name}" if self.binds == (self.cap_name,) else " and ".join(self.binds)
        return (
            f"{height}x{width} pixels, {self.visual.llm_tokens} tokens; set {self.cap_name}={self.cap}; "
            f"limited by {limit}"
        )


def largest_image(
    model: str | VisionLanguageModel,
    *,
    aspect_ratio: float = 1.0,
    memory_bytes: float | None = None,
    prefill_flops: float | None = None,
    latency_s: float | None = None,
    flops_per_s: float | None = None,
    seconds: Callable[[VisionLanguageCost], float] | None = None,
    **request: Any,
) -> LargestImage:
    """The largest image of `aspect_ratio` (width / height) whose request stays within all budgets that are given.

    `memory_bytes` is the memory of the device, weights included, less what its context and allocator keep;
    `prefill_flops` is for one sequence until its first token, encoder included; `latency_s` is the time to the first
    token of the batch, by `seconds(cost)` or at `flops_per_s`. `request` is passed to `estimate_vision_language_cost`
    (num_images, text_tokens, batch_size, ...).
    Exact: cost never falls as the cap rises, so bisecting all caps finds the last one that fits.
    Raises `UserError` without a budget or an image, for a budget that is not a finite number above 0, and
    `BudgetTooSmallError` if the smallest image does not fit.
    """
    if request.get("num_images", 1) < 1:
        raise UserError(f"num_images={request['num_images']}: the largest image needs at least 1")
    chosen = get_model(model) if isinstance(model, str) else model
    budgets = _budgets(memory_bytes, prefill_flops, latency_s, flops_per_s, seconds)
    picture = huge_picture(aspect_ratio)
    caps = chosen.image_rule.caps()

    def cost_at(index: int) -> VisionLanguageCost:
        rule = chosen.image_rule.with_cap(caps[index])
        return estimate_vision_language_cost(replace(chosen, image_rule=rule), img_size=picture, **request)

    def exceeded(index: int) -> tuple[str, ...]:
        cost = cost_at(index)
        return tuple(name for name, (limit, measure) in budgets.items() if measure(cost) > limit)

    too_large = bisect_left(range(len(caps)), True, key=lambda index: bool(exceeded(index)))
    if too_large == 0:
        raise _too_small(cost_at(0), exceeded(0), budgets)
    size = cost_at(too_large - 1).visual.resized
    area = size[0] * size[1]
    first = bisect_left(
        range(too_large), area, key=lambda index: cost_at(index).visual.resized[0] * cost_at(index).visual.resized[1]
    )
    cost = cost_at(first)
    return LargestImage(
        img_size=cost.visual.content_size,
        cap_name=chosen.image_rule.cap_name,
        cap=cost.model.image_rule.cap_setting(),
        binds=exceeded(too_large) if too_large < len(caps) else (chosen.image_rule.cap_name,),
        cost=cost,
    )


_Budgets = dict[str, tuple[float, Callable[[VisionLanguageCost], float]]]


def _budgets(
    memory_bytes: float | None,
    prefill_flops: float | None,
    latency_s: float | None,
    flops_per_s: float | None,
    seconds: Callable[[VisionLanguageCost], float] | None,
) -> _Budgets:
    budgets: _Budgets = {}
    if memory_bytes is not None:
        budgets["memory_bytes"] = (memory_bytes, lambda cost: cost.peak_memory_bytes)
    if prefill_flops is not None:
        budgets["prefill_flops"] = (prefill_flops, lambda cost: cost.flops_prefill)
    if latency_s is not None:
        if (flops_per_s is None) == (seconds is None):
            raise UserError("latency_s needs to know the speed: give flops_per_s or a function seconds, not both")
        if flops_per_s is not None:
            speed = flops_per_s
            budgets["latency_s"] = (latency_s, lambda cost: cost.batch_size * cost.flops_prefill / speed)
        elif seconds is not None:
            budgets["latency_s"] = (latency_s, seconds)
    for name, (limit, _) in budgets.items():
        if not 0 < limit < inf:
            raise UserError(f"{name}={limit}: give a finite number above 0")
    if not budgets:
        raise UserError("no budget is given: give memory_bytes, prefill_flops or latency_s")
    return budgets


def _too_small(cost: VisionLanguageCost, exceeded: tuple[str, ...], budgets: _Budgets) -> BudgetTooSmallError:
    height, width = cost.visual.resized
    smallest = f"the smallest image of {cost.model.name}, {height}x{width}"
    both = {name: (budgets[name][1](cost), budgets[name][0]) for name in exceeded}
    needs = " and ".join(f"{name}={needed:.4g} (given {given:.4g})" for name, (needed, given) in both.items())
    return BudgetTooSmallError(f"{smallest}, needs {needs}; {ADVICE}", smallest=smallest, needs=both)
