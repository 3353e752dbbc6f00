"""A plan in plain words: one paragraph for whoever pays."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from patchscale.planner.rows import records

if TYPE_CHECKING:
    from patchscale.planner.plan import Plan

BUDGET_WORDS = {
    "train_gpu_hours": "GPU-hours of training",
    "train_flops": "FLOPs of training",
    "infer_flops": "FLOPs per image",
    "latency_s": "latency",
    "peak_memory_bytes": "training memory",
    "infer_memory_bytes": "memory of a forward pass",
    "visual_tokens": "visual tokens",
    "params_total": "parameters",
}
REQUEST_WORDS = {
    "infer_flops": "FLOPs per request",
    "latency_s": "time to the first token",
    "peak_memory_bytes": "memory",
    "kv_cache_bytes": "key-value cache",
}
"""What prices are called where a configuration is a vision-language model."""
AXIS_WORDS = {
    "model": "the next larger model",
    "img_size": "larger images",
    "patch_size": "smaller patches",
    "images_seen": "longer training",
    "merge_factor": "less merging of tokens",
    "visual_tokens": "more visual tokens",
    "llm": "the next larger language model",
}


def budget_words(name: str, row: Mapping[str, Any]) -> str:
    """What a price of the configuration `row` is called."""
    words = BUDGET_WORDS | REQUEST_WORDS if "llm" in row else BUDGET_WORDS
    return words.get(name, name)


def say_price(name: str, value: float) -> str:
    """A price with its unit."""
    if name.endswith("_bytes"):
        return f"{value / 2**30:.3g} GiB"
    if name.endswith("_s"):
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:,.3g} s"
    if name.endswith("_hours"):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return count_words(value)


def count_words(value: float) -> str:
    """1,234,567,890 as 1.23e+09; small counts as they are."""
    return f"{value:,.0f}" if abs(value) < 1e6 and value == int(value) else f"{value:.3g}"


def describe(row: Mapping[str, Any], axes: Sequence[str]) -> str:
    """A configuration in words."""
    parts = []
    if "model" in row:
        parts.append(str(row["model"]))
    sides = [f"{row['img_size']:g} px images"] if "img_size" in row else []
    if "patch_size" in row:
        sides.append(f"patches of {row['patch_size']:g} px")
    if sides:
        parts.append((" with " if parts else "") + " in ".join(sides))
    if "merge_factor" in row:
        parts.append(f", merged {row['merge_factor']:g} x {row['merge_factor']:g}")
    if "llm" in row:
        parts.append(f"{' and' if parts else ''} language model {row['llm']}")
    if "images_seen" in row:
        parts.append(f", trained on {row['images_seen'] / 1e6:,.4g}M images")
    known = {"visual_tokens", "model", "img_size", "patch_size", "merge_factor", "llm", "images_seen"}
    if "visual_tokens" in axes:
        parts.append(f"{' and' if parts else ''} {row['visual_tokens']:,.0f} visual tokens")
    others = [
        f"{axis}={count_words(row[axis]) if not isinstance(row[axis], str) else row[axis]}"
        for axis in axes
        if axis not in known and axis in row
    ]
    if others:
        parts.append((", " if parts else "") + ", ".join(others))
    return "".join(parts).strip() or "the only configuration"


def say_plan(plan: "Plan") -> str:
    """The whole plan in one paragraph."""
    sentences = (_choice, _use, _memory, _limit, _next, _tied, _blind, _domain)
    return " ".join(said for say in sentences if (said := say(plan)))


def _choice(plan: "Plan") -> str:
    best, quality = plan.best, plan.quality
    interval = ""
    if best["low"] == best["low"]:  # not NaN
        interval = f" [{quality.show(best['low'])}, {quality.show(best['high'])}]"
    return (
        f"Of {plan.configurations:,} configurations {plan.feasible:,} keep the budgets, and the law expects most of "
        f"{describe(best, plan.axes)}: {quality.quantity} {quality.show(best['predicted'])}{interval}."
    )


def _use(plan: "Plan") -> str:
    uses = [
        f"{say_price(name, plan.best[name])} of {say_price(name, limit)} {_words(plan, name)} "
        f"({plan.best[name] / limit:.0%})"
        for name, limit in plan.budgets.items()
    ]
    return f"It takes {_listed(uses)}."


def _memory(plan: "Plan") -> str:
    """A warning, where memory is no budget and the device has too little."""
    name = "peak_memory_bytes" if {"images_seen", "llm"} & set(plan.best) else "infer_memory_bytes"
    has, needs = plan.device_memory_bytes, plan.best.get(name)
    if has is None or needs is None or name in plan.budgets or needs <= has:
        return ""
    return (
        f"It does not fit: it takes {say_price(name, needs)}, and the device has {say_price(name, has)}; "
        f"give {name} as a budget, or a smaller batch."
    )


def _limit(plan: "Plan") -> str:
    if not plan.binds:
        return "No budget holds it back: nothing in the space is expected to be better."
    names = _listed([_words(plan, name) for name in plan.binds])
    if plan.binds_together:
        return f"It is held back by {names} together; more of one alone would not help."
    parts = []
    for row in records(plan.doublings):
        if row["budget"] in plan.binds and row["gain"] == 0:
            parts.append(f"even twice the {_words(plan, row['budget'])} is too little for anything better")
        elif row["budget"] in plan.binds:
            gain = f"{plan.quality.show_gain(row['gain'])}{_interval(plan, row)}"
            parts.append(f"twice the {_words(plan, row['budget'])} would gain {gain} ({describe(row, plan.axes)})")
    return f"What holds it back is {names}: {'; '.join(parts)}."


def _next(plan: "Plan") -> str:
    if not len(plan.steps):
        return ""
    rows = records(plan.steps.sort_values("gain_per_doubling", ascending=False))
    row = rows[0]
    if row["gain"] <= 0:
        return ""
    return (
        f"Of single steps, {AXIS_WORDS.get(row['axis'], 'more ' + row['axis'])} pays best: "
        f"{describe(row, plan.axes)} gains {plan.quality.show_gain(row['gain'])}{_interval(plan, row)} for "
        f"{row['price_ratio']:.3g} times the {_words(plan, plan.rank_by)}."
    )


def _tied(plan: "Plan") -> str:
    if not plan.quality.has_draws:
        return ""
    ties = plan.ties
    if len(ties) <= 1:
        return f"No other configuration is tied with it at {plan.level:.0%}."
    well_known = ties[~ties["poorly_known"]]
    cheapest = records(well_known.sort_values(["extrapolated", plan.rank_by], kind="stable").head(1))[0]
    many = f"{len(ties) - 1:,} other{'s' if len(ties) > 2 else ''}"
    text = f"The data cannot tell it from {many} at {plan.level:.0%}"
    if len(well_known) < len(ties):
        text += f", from {len(ties) - len(well_known):,} only because little is known about them"
    if cheapest[plan.rank_by] < plan.best[plan.rank_by]:
        share = cheapest[plan.rank_by] / plan.best[plan.rank_by]
        which = "the cheapest of the rest" if len(well_known) < len(ties) else "the cheapest of them"
        which += "" if cheapest["extrapolated"] else " inside the measured range"
        text += (
            f"; {which} takes {share:.0%} of its {_words(plan, plan.rank_by)}: {describe(cheapest, plan.axes)}, "
            f"{plan.quality.show(cheapest['predicted'])}"
        )
    return text + "."


def _blind(plan: "Plan") -> str:
    if not plan.blind:
        return ""
    return f"The law says nothing about {_listed(plan.blind)}; of those the cheapest was taken, not the best."


def _domain(plan: "Plan") -> str:
    if not plan.best["extrapolated"]:
        return ""
    axes = plan.best["outside"].replace(",", ", ").replace(",  ", ", ")
    return (
        f"This is an extrapolation{f' ({axes})' if axes else ''}: it lies outside of what was measured, and the "
        "interval holds only if the law does there."
    )


def _interval(plan: "Plan", row: Mapping[str, Any]) -> str:
    if not plan.quality.has_draws:
        return ""
    low, high = (plan.quality.show_gain(row[end]).split()[0] for end in ("gain_low", "gain_high"))
    return f" [{low}, {high}]"


def _words(plan: "Plan", name: str) -> str:
    return budget_words(name, plan.best)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
