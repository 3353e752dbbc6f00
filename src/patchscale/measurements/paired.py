"""Several candidates in one process, taking turns: whatever else the machine does falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    """25 %."""
    high: float
    """75 %."""


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of each repetition of each candidate; the k-th ones were taken right after each other."""

    times_s: Mapping[str, Sequence[float]]

    def time_s(self, name: str) -> Spread:
        """Time of a candidate."""
        return spread(self.times_s[name])

    def ratio(self, name: str, reference: str) -> Spread:
        """Time of one candidate over another's, pair by pair."""
        return spread([a / b for a, b in zip(self.times_s[name], self.times_s[reference], strict=True)])


def alternate(
    candidates: Mapping[str, Callable[[], Any]], *, device: torch.device, warm_up: int, repetitions: int
) -> PairedTimes:
    """Call the candidates in turn, `warm_up` + `repetitions` rounds, and keep the times of the latter."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(warm_up + repetitions):
        for name, call in candidates.items():
            elapsed_s = timed(call, device)
            if repetition >= warm_up:
                times[name].append(elapsed_s)
    return PairedTimes(times)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, with the device idle before and after."""
    wait_for(device)
    started = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
