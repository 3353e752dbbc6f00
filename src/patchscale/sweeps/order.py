"""In which order the runs of a study start. No torch.

    cheapest-first    by training FLOPs: results soon
    widest-first      the ends of every curve, then what lies in between, one seed after the other: a fit soon
    longest-first     by training FLOPs, the largest first: the last runs to end are short, which packs workers best
    given             as in the study file

A stage never comes before the one that it starts from.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from patchscale.sweeps.plan import PlannedRun

Order = Literal["cheapest-first", "widest-first", "longest-first", "given"]
ORDERS: tuple[str, ...] = get_args(Order)


def in_order(planned: Sequence["PlannedRun"], order: str) -> list["PlannedRun"]:
    """The runs in the order in which they should start."""
    if order == "cheapest-first":
        return sorted(planned, key=price_of_stages)  # a stage costs more than the one before
    if order == "longest-first":
        last = {item.run_id: item for item in planned}
        ends = _ends_of_stages(planned)
        return sorted(last.values(), key=lambda item: (-price_of_stages(ends[item.run_id]), item.stage))
    if order == "widest-first":
        return _with_stages(_widest_first(_last_stages(planned)))
    return list(planned)


def price_of_stages(item: "PlannedRun") -> float:
    """Training FLOPs of all stages up to this one; per image, where the number of images is unknown."""
    if item.flops_train_stages is not None:
        return item.flops_train_stages
    return item.counts.flops_train + (0 if item.former is None else price_of_stages(item.former))


def _ends_of_stages(planned: Sequence["PlannedRun"]) -> dict[str, "PlannedRun"]:
    """Identity of each run -> the most expensive run that goes on from it, or itself."""
    ends: dict[str, PlannedRun] = {}
    for item in sorted(planned, key=price_of_stages, reverse=True):
        each: PlannedRun | None = item
        while each is not None:
            ends.setdefault(each.run_id, item)
            each = each.former
    return ends


def _last_stages(planned: Sequence["PlannedRun"]) -> list["PlannedRun"]:
    former = {item.former.run_id for item in planned if item.former is not None}
    return [item for item in planned if item.run_id not in former]


def _widest_first(runs: Sequence["PlannedRun"]) -> list["PlannedRun"]:
    """Seed by seed, the runs of every curve in turn: fewest tokens, most, then the farthest from those before."""
    ordered: list[PlannedRun] = []
    for seed in dict.fromkeys(item.config.seed for item in runs):
        curves: dict[tuple[str, str, int], list[PlannedRun]] = {}
        for item in runs:
            if item.config.seed == seed:
                model = item.config.model
                curves.setdefault((item.config.settings, model.name, math.prod(_sides(model.img_size))), []).append(
                    item
                )
        spread = [_spread(curve, lambda item: math.log(item.counts.tokens)) for curve in curves.values()]
        for place in range(max(map(len, spread), default=0)):
            ordered += [curve[place] for curve in spread if place < len(curve)]
    return ordered


def _spread(items: Sequence["PlannedRun"], value: Callable[["PlannedRun"], float]) -> list["PlannedRun"]:
    left = sorted(items, key=value)
    chosen = left[:1]
    left = left[1:]
    while left:
        # Of equals the finest, so that the second is the other end.
        farthest = max(left, key=lambda item: (min(abs(value(item) - value(each)) for each in chosen), value(item)))
        chosen.append(farthest)
        left.remove(farthest)
    return chosen


def _with_stages(runs: Sequence["PlannedRun"]) -> list["PlannedRun"]:
    """Every run after the stages before it."""
    ordered: dict[str, PlannedRun] = {}
    for item in runs:
        stages = [item]
        while (former := stages[-1].former) is not None:
            stages.append(former)
        for stage in reversed(stages):
            ordered.setdefault(stage.run_id, stage)
    return list(ordered.values())


def _sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    return (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
