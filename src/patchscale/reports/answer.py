"""The answer in plain words: what finer patches bought, what the next one would buy, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from patchscale.reports.curves import Curve, TargetName, target_values
from patchscale.reports.words import listed, missing, number, percent, plural

if TYPE_CHECKING:
    from patchscale.laws.fit import Fit

Word = Literal["firm", "fair", "weak", "unusable"]

SERIOUS = ("trend", "dof", "weak-exponent", "at-bound", "lack-of-fit", "residual-runs", "holdout")
"""Checks that touch what the law says; the others touch how well that is known."""

MAX_SPELLED_OUT = 3
"""Laws that are told one by one at the top; more are summed up."""

MEANINGS: dict[Word, str] = {
    "firm": "no check warned",
    "fair": "checks warn of the evidence (seeds, sizes, parameters that trade off), none of what the law says",
    "weak": "the data hardly bound what the law says, or the law misses some of it; trust the intervals only",
    "unusable": "a check failed; do not use the numbers",
}


@dataclass(frozen=True)
class Step:
    """From one patch size to a finer one."""

    large: int
    small: int
    before: float
    after: float


def verdict(fit: "Fit") -> Word:
    """How sure a law is, from its checks."""
    states = {check.code: check.state for check in fit.checks}
    if "fail" in states.values():
        return "unusable"
    if any(states.get(code) == "warn" for code in SERIOUS):
        return "weak"
    return "fair" if "warn" in states.values() else "firm"


def show(value: float, target: TargetName) -> str:
    """A loss with four digits, an error in per cent."""
    return number(value) if target == "loss" else percent(value, 2)


def change(before: float, after: float, target: TargetName) -> str:
    """Relative for a loss, in points for an error."""
    loss = f"{100 * (after - before) / before:+.1f} %"
    points = f"{100 * (after - before):+.2f} points"
    return (loss if target == "loss" else points).replace("-", "−")


def quantity_name(target: TargetName, curves: Sequence[Curve]) -> str:
    """What is measured, in words."""
    if target == "loss":
        return "test loss"
    names = sorted({str(curve.key["metric_name"]) for curve in curves if not missing(curve.key.get("metric_name"))})
    return f"error (1 − {listed(names, 'or')})" if names else "error"


def last_step(curve: Curve, target: TargetName) -> Step | None:
    """The last measured step to a finer patch."""
    means = curve.means(target)
    if len(means) < 2:
        return None
    return Step(int(means.index[-2]), int(means.index[-1]), float(means.iloc[-2]), float(means.iloc[-1]))


def next_size(curve: Curve, target: TargetName) -> int | None:
    """The next finer patch worth running: half of the finest, or the nearest size below it that divides the image."""
    finest = int(curve.means(target).index[-1])
    side = curve.key.get("img_size")
    if missing(side) or not isinstance(side, int | float):
        return finest // 2 if finest % 2 == 0 else None
    finer = [size for size in range(1, finest) if int(side) % size == 0]
    return min(finer, key=lambda size: abs(size - finest / 2)) if finer else None


def lede(curves: Sequence[Curve], target: TargetName) -> list[str]:
    """The opening sentences of a report."""
    quantity = quantity_name(target, curves)
    compared = [curve for curve in curves if len(curve.means(target)) > 1]
    if not compared:
        if not any(len(curve.means(target)) for curve in curves):
            return [f"No finished run has a {quantity} yet, so there is nothing to compare."]
        return ["Every curve has runs at one patch size only, so there is nothing to compare yet."]
    sentences = [_trend_sentence(compared, target, quantity), *_other_quantity_sentence(compared, target)]
    laws = [(curve, curve.fits[target]) for curve in curves if target in curve.fits]
    if not laws:
        return [*sentences, "No law could be fitted; the reasons are below."]
    if len(laws) <= MAX_SPELLED_OUT:
        return sentences
    return [*sentences, _laws_sentence(laws, len(curves)), *_next_sentence(laws, target, quantity)]


def law_sentences(curves: Sequence[Curve], target: TargetName) -> list[tuple[str, str]]:
    """(curve, what its law says and how sure that is), if there are few enough to be read one by one."""
    laws = [(curve, curve.fits[target]) for curve in curves if target in curve.fits]
    if len(laws) > MAX_SPELLED_OUT:
        return []
    return [(curve.label, _law_sentence(curve, fit, target)) for curve, fit in laws]


def _law_sentence(curve: Curve, fit: "Fit", target: TargetName) -> str:
    word = verdict(fit)
    sure = f"This law is {word}: {MEANINGS[word]}."
    if word == "unusable":
        return sure
    quantity = quantity_name(target, [curve])
    floor = fit.parameters["E"]
    bottom = f"{show(floor.value, target)} [{show(floor.low, target)}, {show(floor.high, target)}]"
    step = predicted_step(curve, fit, target)
    if step is None:
        finest = int(curve.means(target).index[-1])
        value = fit.predict([float(finest)])["predicted"].iloc[0]
        start = f"at {finest} px, the finest patch there is, the law puts the {quantity} at {show(value, target)}"
        return f"{start}; the floor at {bottom}. {sure}"
    row = fit.predict([float(step.small)]).iloc[0]
    interval = f"[{show(row['low'], target)}, {show(row['high'], target)}]"
    doubt = ""
    if step.after >= step.before:
        doubt = ", so no further gain is predicted"
    elif row["high"] >= step.before:
        doubt = ", which the interval includes, so a gain is likely but not certain"
    return (
        f"at {step.small} px, outside the measured range, the law puts the {quantity} at {show(step.after, target)} "
        f"{interval}, against {show(step.before, target)} measured at {step.large} px{doubt}; the floor is put at "
        f"{bottom}. {sure}"
    )


def _trend_sentence(curves: Sequence[Curve], target: TargetName, quantity: str) -> str:
    steady = [curve for curve in curves if not curve.rises(target)]
    better = [curve for curve in curves if curve.means(target).iloc[-1] < curve.means(target).iloc[0]]
    if len(curves) == 1:
        means = curves[0].means(target)
        course = (
            f"the {quantity} goes from {show(means.iloc[0], target)} at {int(means.index[0])} px "
            f"to {show(means.iloc[-1], target)} at {int(means.index[-1])} px"
        )
        if steady:
            return f"Finer patches helped at every step: {course}."
        start = "Finer patches helped over the whole range, though not at every step" if better else "They did not help"
        return f"{start}: {course}."
    finest = min(int(curve.means(target).index[-1]) for curve in curves)
    if len(steady) == len(curves):
        every = "both curves" if len(curves) == 2 else f"all {len(curves)} curves"
        return (
            f"Finer patches helped at every step on {every}: the {quantity} falls whenever the patch shrinks, down to "
            f"{finest} px."
        )
    return (
        f"Finer patches helped at every step on {len(steady)} of {plural(len(curves), 'curve')}, and from the coarsest "
        f"to the finest on {len(better)}; where the trend breaks is said below."
    )


def _other_quantity_sentence(curves: Sequence[Curve], target: TargetName) -> list[str]:
    """Where the quantity that is not fitted disagrees, if it does."""
    other: TargetName = "error" if target == "loss" else "loss"
    broken = [
        f"{curve.label} at {listed([f'{small} px' for _, small in curve.rises(other)])}"
        for curve in curves
        if curve.rises(other)
    ]
    if not broken or len(broken) > MAX_SPELLED_OUT:
        return [f"The {quantity_name(other, curves)} does not improve at every step."] if broken else []
    return [f"The {quantity_name(other, curves)} got worse at a finer patch on {listed(broken)}."]


def _laws_sentence(laws: "Sequence[tuple[Curve, Fit]]", count: int) -> str:
    words: list[Word] = [verdict(fit) for _, fit in laws]
    kinds = [f"{words.count(word)} {'is' if words.count(word) == 1 else 'are'} {word}" for word in MEANINGS]
    kinds = [kind for kind, word in zip(kinds, MEANINGS, strict=True) if word in words]
    of = f"all {count}" if len(laws) == count else f"{len(laws)} of {count}"
    return f"Laws were fitted to {of} curves: {listed(kinds)}, which is explained below the table."


def _next_sentence(laws: "Sequence[tuple[Curve, Fit]]", target: TargetName, quantity: str) -> list[str]:
    """What one more halving would buy, over the laws that can be used; nothing if none has a finer patch left."""
    steps = [
        min(0.0, step.after - step.before) / (step.before if target == "loss" else 1)
        for curve, fit in laws
        if verdict(fit) != "unusable" and (step := predicted_step(curve, fit, target)) is not None
    ]
    if not steps:
        return []
    low, high = 100 * min(-step for step in steps), 100 * max(-step for step in steps)
    unit = "%" if target == "loss" else "points"
    decimals = 1 if target == "loss" else 2
    ends = list(dict.fromkeys(f"{end:.{decimals}f}" for end in (low, high)))
    where = "depending on the curve" if len(ends) > 1 else "where one is left"
    gain = f"{' to '.join(ends)} {unit}"
    return [
        f"The next finer patch, outside the measured range, is predicted to take {gain} off the {quantity}, {where}."
    ]


def predicted_step(curve: Curve, fit: "Fit", target: TargetName) -> Step | None:
    """From the value measured at the finest patch to the law's at the next finer one."""
    finer = next_size(curve, target)
    if finer is None:
        return None
    means = curve.means(target)
    return Step(
        int(means.index[-1]), finer, float(means.iloc[-1]), float(fit.predict([float(finer)])["predicted"].iloc[0])
    )


def seeds_spread(curve: Curve, target: TargetName, patch_size: int) -> float:
    """Largest minus smallest value among the seeds at one patch size."""
    values = target_values(curve.runs, target)[curve.runs["patch_size"] == patch_size].dropna()
    return float(values.max() - values.min()) if len(values) else 0.0


def farthest_from_law(fit: "Fit") -> tuple[float, float]:
    """(patch size, mean value over the law's value - 1) where the means over seeds are farthest from the law."""
    means = fit.points().groupby("patch_size")[["measured", "fitted"]].mean()
    misses = (means["measured"] / means["fitted"] - 1).to_numpy(dtype=float)
    farthest = int(abs(misses).argmax())
    return float(means.index[farthest]), float(misses[farthest])
