"""From how many tokens on is the second of two models faster than the first?

Attention grows with the square of the tokens, the scan with the tokens; below the crossing attention is cheaper, above
it the scan. The search doubles the tokens until the second model is faster, then halves the bracket.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import isqrt, sqrt
from typing import Any

import torch

from patchscale.measurements.child import ChildDied, ChildFailed, in_fresh_process
from patchscale.measurements.paired import alternate
from patchscale.measurements.step import StepConfig, build_step
from patchscale.training.device import resolve_device

FIRST_SIDE = 4
"""The search begins with 4 x 4 tokens."""
PRECISION = 1.1
"""The bracket is narrow enough when its ends differ by a tenth."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Both models at one size, in turns: seconds of a step, and the ratio of the first's to the second's, paired."""

    tokens: int
    img_size: int
    patch_size: int
    first_s: float
    second_s: float
    ratio: float
    ratio_25: float
    ratio_75: float
    spent_s: float
    """Of all its steps, those of the warm-up too."""

    @property
    def second_is_faster(self) -> bool:
        """By the median."""
        return self.ratio > 1


class CannotTry(RuntimeError):
    """A size at which nothing could be measured."""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """What a search found; both ends are None if the models never changed places."""

    trials: tuple[Trial, ...]
    last_first: int | None
    """The most tokens at which the first model was still faster, below the crossing."""
    first_second: int | None
    """The fewest tokens at which the second was."""
    stopped_by: str
    """Why no larger or closer size was tried."""
    interrupted: bool = False
    """Whether that was Ctrl-C."""

    def sentence(self, first: str, second: str, step: str = "step") -> str:
        """The result in words."""
        if not self.trials:
            return f"nothing was measured: {self.stopped_by}"
        by_tokens = {trial.tokens: trial for trial in self.trials}
        smallest, largest = min(by_tokens), max(by_tokens)
        if self.first_second is None:
            words = _ratio_words(by_tokens[largest])
            return (
                f"no crossing: a {step} of {first} is faster than one of {second} at every size up to "
                f"{largest:,} tokens ({words} there); the search was stopped by {self.stopped_by}"
            )
        if self.last_first is None:
            return (
                f"no crossing: a {step} of {second} is faster than one of {first} already at {smallest:,} tokens "
                f"({_ratio_words(by_tokens[smallest])}), the fewest tried"
            )
        return (
            f"a {step} of {second} becomes faster than one of {first} between {self.last_first:,} tokens "
            f"({_ratio_words(by_tokens[self.last_first])}) and {self.first_second:,} tokens "
            f"({_ratio_words(by_tokens[self.first_second])})"
        )

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def find_crossover(compare: Callable[[int, float], Trial], *, max_tokens: int, time_limit_s: float) -> Crossover:
    """Search over square grids of tokens; `compare(side, seconds_left)` measures side x side or raises `CannotTry`.

    A size is not begun if, taking quadratic growth from the last one, it would end after `time_limit_s`. Ctrl-C ends
    the search, with what was found so far.
    """
    started = time.perf_counter()
    trials: dict[int, Trial] = {}
    stopped_by = f"the most tokens allowed ({max_tokens:,})"

    def attempt(side: int) -> Trial | None:
        nonlocal stopped_by
        seconds_left = started + time_limit_s - time.perf_counter()
        nearest = max((known for known in trials if known < side), default=None)
        expected_s = 0.0 if nearest is None else trials[nearest].spent_s * (side / nearest) ** 4
        if expected_s > seconds_left:
            stopped_by = f"the time limit ({time_limit_s:.0f} s)"
            return None
        try:
            trials[side] = compare(side, seconds_left)
            return trials[side]
        except CannotTry as error:
            stopped_by = f"{side * side:,} tokens: {error}"
        except KeyboardInterrupt:
            stopped_by = "Ctrl-C"
        return None

    below, above = None, None
    for side in _doubling(isqrt(max_tokens)):
        trial = attempt(side)
        if trial is None:
            break
        if trial.second_is_faster:
            above = side
            break
        below = side

    if below is not None and above is not None:
        stopped_by = "a bracket of a tenth"
        while above - below > 1 and (above / below) ** 2 > PRECISION:
            middle = min(max(round(sqrt(above * below)), below + 1), above - 1)
            trial = attempt(middle)
            if trial is None:
                break
            below, above = (below, middle) if trial.second_is_faster else (middle, above)
    return Crossover(
        trials=tuple(trials[side] for side in sorted(trials)),
        last_first=None if below is None else below * below,
        first_second=None if above is None else above * above,
        stopped_by=stopped_by,
        interrupted=stopped_by == "Ctrl-C",
    )


def compare_models(
    first: StepConfig,
    second: StepConfig,
    *,
    warm_up: int,
    repetitions: int,
    num_threads: int | None = None,
    timeout_s: float | None = None,
) -> Trial:
    """Time both configurations in turns in a fresh process; raises `CannotTry` if one does not fit or breaks."""
    options = {"warm_up": warm_up, "repetitions": repetitions, "num_threads": num_threads}
    try:
        return in_fresh_process(_compare_here, first, second, **options, timeout_s=timeout_s)
    except ChildDied as error:
        raise CannotTry("out of memory" if error.is_out_of_memory else str(error)) from error
    except ChildFailed as error:
        raise CannotTry(str(error)) from error


def at_side(config: StepConfig, side: int) -> StepConfig:
    """The same on an image of side x side patches."""
    return replace(config, img_size=side * config.patch_size)


def _compare_here(
    first: StepConfig, second: StepConfig, *, warm_up: int, repetitions: int, num_threads: int | None
) -> Trial:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = resolve_device(first.device)
    steps = {name: build_step(config, device)[1] for name, config in (("first", first), ("second", second))}
    started = time.perf_counter()
    times = alternate(steps, device=device, warm_up=warm_up, repetitions=repetitions)
    spent_s = time.perf_counter() - started
    ratio = times.ratio("first", "second")
    assert isinstance(first.img_size, int)
    return Trial(
        tokens=first.cost().tokens,
        img_size=first.img_size,
        patch_size=first.patch_size,
        first_s=times.time_s("first").median,
        second_s=times.time_s("second").median,
        ratio=ratio.median,
        ratio_25=ratio.low,
        ratio_75=ratio.high,
        spent_s=spent_s,
    )


def _doubling(last_side: int) -> Iterator[int]:
    """Sides of grids with twice the tokens each time, up to and including the last."""
    side = FIRST_SIDE
    exact = float(FIRST_SIDE)
    while 1.2 * side < last_side:
        yield side
        exact *= sqrt(2)
        side = round(exact)
    yield last_side


def _ratio_words(trial: Trial) -> str:
    return f"ratio of times {trial.ratio:.2f}, 25-75 % {trial.ratio_25:.2f}-{trial.ratio_75:.2f}"
