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
from torch import Tensor

from patchscale.measurements.child import ChildDied, ChildFailed, in_fresh_process
from patchscale.measurements.paired import alternate
from patchscale.measurements.step import StepConfig, build_step
from patchscale.training.device import is_out_of_memory, resolve_device

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
    """A size at which nothing could be measured; as such for want of memory."""


class OutOfTime(CannotTry):
    """A size that was ended because the search has no more time."""


class StepFailed(CannotTry):
    """A size at which a step broke, or its loss was not finite."""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """What a search found; both ends are None if the models never changed places."""

    trials: tuple[Trial, ...]
    last_first: int | None
    """The most tokens at which the first model was still faster, below the crossing."""
    first_second: int | None
    """The fewest tokens at which the second was."""
    stopped_by: str
    """Why no larger or closer size was tried, to follow "the search was stopped by"."""
    complete: bool
    """Whether that is because the answer is as close as it is meant to be."""
    interrupted: bool = False
    """Whether it was Ctrl-C."""
    failed: bool = False
    """Whether it was a step that broke, or whose loss was not finite."""

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
        words = (
            f"a {step} of {second} becomes faster than one of {first} between {self.last_first:,} tokens "
            f"({_ratio_words(by_tokens[self.last_first])}) and {self.first_second:,} tokens "
            f"({_ratio_words(by_tokens[self.first_second])})"
        )
        return words if self.complete else f"{words}; the search was stopped by {self.stopped_by}"

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def find_crossover(
    compare: Callable[[int, float], Trial],
    *,
    max_tokens: int,
    time_limit_s: float,
    keep: Callable[[Crossover], None] = lambda found: None,
) -> Crossover:
    """Search over square grids of tokens; `compare(side, seconds_left)` measures side x side or raises `CannotTry`.

    A size is not begun if, taking quadratic growth from the last one, it would end after `time_limit_s`. Ctrl-C ends
    the search, with what was found so far. `keep` is called with that after every size.
    """
    search = _Search(compare, time_limit_s, keep)
    try:
        return search.found(search.run(max_tokens), complete=True)
    except KeyboardInterrupt:
        return search.found("Ctrl-C", interrupted=True)
    except _Ended as end:
        return search.found(str(end), failed=isinstance(end.__cause__, StepFailed))


class _Ended(Exception):
    """The search cannot go on; says why."""


class _Search:
    """The sizes tried, and what they leave open: the crossing is above `below` and not above `above`."""

    def __init__(
        self, compare: Callable[[int, float], Trial], time_limit_s: float, keep: Callable[[Crossover], None]
    ) -> None:
        self._compare, self._time_limit_s, self._keep = compare, time_limit_s, keep
        self._started = time.perf_counter()
        self._trials: dict[int, Trial] = {}
        self._below: int | None = None
        self._above: int | None = None

    def run(self, max_tokens: int) -> str:
        """Search to the end and say what that was; raises `_Ended` before it."""
        for side in _doubling(isqrt(max_tokens)):
            self._attempt(side)
            if self._above is not None:
                break
        if self._above is None:
            return f"the most tokens allowed ({max_tokens:,})"
        if self._below is None:
            return f"the second model, which is faster already at the fewest tokens ({self._above**2:,})"
        while (self._above / self._below) ** 2 > PRECISION:
            if self._above - self._below == 1:
                return f"neighbouring sizes ({self._below} x {self._below} and {self._above} x {self._above} tokens)"
            middle = round(sqrt(self._above * self._below))
            self._attempt(min(max(middle, self._below + 1), self._above - 1))
        return "a bracket of a tenth"

    def found(
        self, stopped_by: str, *, complete: bool = False, interrupted: bool = False, failed: bool = False
    ) -> Crossover:
        """What is known by now."""
        return Crossover(
            trials=tuple(self._trials[side] for side in sorted(self._trials)),
            last_first=None if self._below is None else self._below**2,
            first_second=None if self._above is None else self._above**2,
            stopped_by=stopped_by,
            complete=complete,
            interrupted=interrupted,
            failed=failed,
        )

    def _attempt(self, side: int) -> None:
        seconds_left = self._started + self._time_limit_s - time.perf_counter()
        nearest = max((known for known in self._trials if known < side), default=None)
        expected_s = 0.0 if nearest is None else self._trials[nearest].spent_s * (side / nearest) ** 4
        limit = f"the time limit ({self._time_limit_s:.0f} s)"
        if expected_s > seconds_left:
            raise _Ended(limit)
        try:
            trial = self._compare(side, seconds_left)
        except OutOfTime as error:
            raise _Ended(f"{limit}, reached at {side * side:,} tokens") from error
        except CannotTry as error:
            raise _Ended(f"{side * side:,} tokens: {error}") from error
        self._trials[side] = trial
        if trial.second_is_faster:
            self._above = side
        else:
            self._below = side
        self._keep(self.found("nothing yet"))


def compare_models(
    first: StepConfig,
    second: StepConfig,
    *,
    warm_up: int,
    repetitions: int,
    num_threads: int | None = None,
    timeout_s: float | None = None,
) -> Trial:
    """Time both configurations in turns in a fresh process.

    Raises `CannotTry` if they do not fit into memory, `OutOfTime` after `timeout_s`, `StepFailed` if one breaks.
    """
    options = {"warm_up": warm_up, "repetitions": repetitions, "num_threads": num_threads}
    started = time.perf_counter()
    try:
        found = in_fresh_process(_compare_here, first, second, **options, timeout_s=timeout_s)
    except ChildDied as error:
        raise (CannotTry("out of memory") if error.is_out_of_memory else StepFailed(str(error))) from error
    except ChildFailed as error:
        is_late = timeout_s is not None and time.perf_counter() - started >= timeout_s
        raise (OutOfTime if is_late else StepFailed)(str(error)) from error
    if isinstance(found, CannotTry):
        raise found
    return found


def at_side(config: StepConfig, side: int) -> StepConfig:
    """The same on an image of side x side patches."""
    return replace(config, img_size=side * config.patch_size)


def _compare_here(
    first: StepConfig, second: StepConfig, *, warm_up: int, repetitions: int, num_threads: int | None
) -> Trial | CannotTry:
    """Why it cannot be tried is returned, since of exceptions only the text leaves a process."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = resolve_device(first.device)
    configs = {"first": first, "second": second}
    losses: dict[str, Tensor] = {}

    def keeping_its_loss(name: str, step: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            losses[name] = step()

        return run

    try:
        steps = {name: keeping_its_loss(name, build_step(config, device)[1]) for name, config in configs.items()}
        started = time.perf_counter()
        times = alternate(steps, device=device, warm_up=warm_up, repetitions=repetitions)
        spent_s = time.perf_counter() - started
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return CannotTry("out of memory")
    for name, loss in losses.items():
        if not loss.isfinite():
            return StepFailed(f"the result of {configs[name].model} is not finite ({loss.item()})")
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
