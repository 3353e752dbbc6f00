"""Profile intervals with the F correction for small samples.

The region {parameters: S <= S_min + s^2 F(1, dof)}, S the summed objective and s^2 the noise variance, is projected on
what is asked for. For an exponent that is its profile. For anything linear in the amplitudes (an amplitude, or a
prediction) the end points follow in closed form at each trial of the exponents, so only those are searched.

Coverage is tested by simulation: five patch sizes and a true law give at least 90 % for nominal 95 %
(`tests/laws/test_coverage.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import f as f_distribution

from patchscale.laws.forms import Array, Axes
from patchscale.laws.varpro import TINY, Problem, Solution, faces, project, zoom

LACK_OF_FIT_LEVEL = 0.05


@dataclass(frozen=True)
class Noise:
    """The variance of a residual, and where it was read from."""

    variance: float
    dof: int
    source: str
    lack_of_fit_p: float | None = None
    """Chance of replicates agreeing this much better than the law fits, if the law were right; None: no replicates."""


@dataclass(frozen=True)
class Interval:
    """Both ends; an open end is 0 or infinite, and was sought as far as `searched`.

    An end is open if the bounds of the search, not the data, stop it.
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    searched: tuple[float, float] = (0.0, np.inf)

    def __str__(self) -> str:
        low = f"<{self.searched[0]:.3g}" if self.low_open else f"{self.low:.3g}"
        high = f">{self.searched[1]:.3g}" if self.high_open else f"{self.high:.3g}"
        return f"[{low}, {high}]"

    def times(self, unit: float) -> "Interval":
        """The same in another unit."""
        searched = (unit * self.searched[0], unit * self.searched[1])
        return Interval(unit * self.low, unit * self.high, self.low_open, self.high_open, searched)

    @classmethod
    def between(cls, low: float, high: float, *, low_open: bool, high_open: bool) -> "Interval":
        """The interval whose ends were found at `low` and `high`."""
        return cls(0.0 if low_open else low, np.inf if high_open else high, low_open, high_open, (low, high))


def estimate_noise(problem: Problem, solution: Solution) -> Noise:
    """Noise from the residuals; from the misfit alone where replicates show that the law does not fit.

    With replicates the sum of squares splits into pure error (between seeds at one patch size) and lack of fit. If the
    latter is too large (F test, 5 %), intervals rest on it: seeds that agree say nothing about a law that is wrong.
    """
    dof = problem.num_points - problem.num_parameters
    levels = problem.levels
    num_levels = int(levels.max()) + 1
    pure_dof, fit_dof = problem.num_points - num_levels, num_levels - problem.num_parameters
    pooled = solution.objective / dof if dof > 0 else np.inf
    floor = TINY if problem.relative else 1.0
    if pure_dof == 0 or fit_dof <= 0:
        return Noise(max(pooled, floor), dof, "residuals")
    weight = 1 / problem.sigma**2
    mean = np.bincount(levels, weight * problem.measured) / np.bincount(levels, weight)
    pure = float(np.sum(weight * (problem.measured - mean[levels]) ** 2))
    misfit = max(solution.objective - pure, 0.0) / fit_dof
    chance = float(f_distribution.sf(misfit / max(pure / pure_dof, floor), fit_dof, pure_dof))
    if chance < LACK_OF_FIT_LEVEL:
        return Noise(max(misfit, floor), fit_dof, "lack of fit", chance)
    return Noise(max(pooled, floor), dof, "residuals", chance)


def threshold(solution: Solution, noise: Noise, level: float) -> float:
    """The objective on the edge of the profile region."""
    return solution.objective + noise.variance * float(f_distribution.ppf(level, 1, noise.dof))


def exponent_interval(problem: Problem, solution: Solution, index: int, edge: float) -> Interval:
    """Profile interval of one exponent: the hull of all values the objective allows."""
    low, high = problem.bounds
    centre = float(np.log(solution.exponents[index]))
    others = np.delete(np.arange(len(low)), index)

    def excess(places: Array) -> Array:
        if not len(others):
            return project(problem, np.exp(places[:, None]))[1] - edge
        return np.array([_best_given(problem, index, float(place)) for place in places]) - edge

    def excess_at(place: float) -> float:
        return float(excess(np.array([place]))[0])

    # steps away from the optimum grow geometrically, so that both sharp and flat profiles are bracketed; with other
    # exponents to minimise over, each step is a search of its own
    steps = np.geomspace(1e-9, high[index] - low[index], 24 if len(others) else 160)
    ends = []
    for sign, bound in ((-1, low[index]), (1, high[index])):
        places = np.unique(np.clip(centre + sign * steps, low[index], high[index]))
        places = places[np.argsort(np.abs(places - centre))]
        allowed = excess(places) <= 0
        if not allowed.any():
            ends.append((centre, False))
            continue
        last = int(np.flatnonzero(allowed)[-1])
        if last == len(places) - 1:
            ends.append((float(bound), True))
        else:
            ends.append((brentq(excess_at, places[last], places[last + 1], xtol=1e-12), False))
    (low_end, low_open), (high_end, high_open) = ends
    return Interval.between(float(np.exp(low_end)), float(np.exp(high_end)), low_open=low_open, high_open=high_open)


def _best_given(problem: Problem, index: int, place: float) -> float:
    """The best objective with one exponent held, the others free."""
    low, high = (np.delete(bound, index) for bound in problem.bounds)

    def objective(grid: Array) -> Array:
        return project(problem, np.exp(np.insert(grid, index, place, axis=1)))[1]

    return zoom(objective, low, high)[1]


def linear_interval(
    problem: Problem,
    exponents: Sequence[Interval],
    edge: float,
    direction: Callable[[Array], Array],
    *,
    extra_variance: float = 0.0,
) -> Interval:
    """Profile interval of a combination of the amplitudes, `direction(exponents [G, q]) -> [G, k]`.

    `exponents` are the intervals of the exponents. `extra_variance`, in units of the residual variance, widens the
    interval to that of a new measurement.
    """
    low, high = exponent_region(problem, exponents)

    def lower(places: Array) -> Array:
        return _ends(problem, np.exp(places), edge, direction, extra_variance)[0]

    def minus_upper(places: Array) -> Array:
        return -_ends(problem, np.exp(places), edge, direction, extra_variance)[1]

    low_place, low_end = zoom(lower, low, high)
    high_place, high_end = zoom(minus_upper, low, high)
    return Interval.between(
        low_end,
        -high_end,
        low_open=_stopped_by_bounds(lower, low_place, low_end, exponents, (low, high)),
        high_open=_stopped_by_bounds(minus_upper, high_place, high_end, exponents, (low, high)),
    )


def _stopped_by_bounds(
    function: Callable[[Array], Array],
    place: Array,
    value: float,
    exponents: Sequence[Interval],
    region: tuple[Array, Array],
) -> bool:
    """Whether an extreme lies at the bound of an open exponent and still moves there: over 1 % for 10 % in it."""
    for i, interval in enumerate(exponents):
        for bound, is_open, inward in (
            (region[0][i], interval.low_open, 1.1),
            (region[1][i], interval.high_open, 1 / 1.1),
        ):
            if is_open and abs(place[i] - bound) < 1e-6:
                inside = place.copy()
                inside[i] += np.log(inward)
                before = float(function(inside[None])[0])
                if not abs(before - value) <= 0.01 * abs(value):
                    return True
    return False


def _ends(
    problem: Problem,
    exponents: Array,
    edge: float,
    direction: Callable[[Array], Array],
    extra_variance: float,
) -> tuple[Array, Array]:
    """Smallest and largest combination of non-negative amplitudes within the region, at each exponent vector.

    On one face the region is an ellipsoid, and its extreme point in a direction is known. An extreme over the
    non-negative part of it is the extreme of some face, so all faces are tried.
    """
    wanted = direction(exponents)
    low, high = np.full(len(exponents), np.inf), np.full(len(exponents), -np.inf)
    for face in faces(problem, exponents):
        part = wanted[:, face.members]
        slack = edge - face.objective
        leverage = np.einsum("gij,gi->gj", face.root, part)
        variance = np.einsum("gj,gj->g", leverage, leverage) + extra_variance
        reach = np.sqrt(np.clip(slack, 0, None) / np.where(variance > 0, variance, 1))
        step = reach[:, None] * np.einsum("gij,gj->gi", face.root, leverage)
        centre = np.einsum("gi,gi->g", face.amplitudes, part)
        half_width = reach * variance
        inside = slack >= 0
        free = problem.free[face.members]
        below = inside & ((face.amplitudes - step >= 0) | free).all(axis=1)
        above = inside & ((face.amplitudes + step >= 0) | free).all(axis=1)
        low = np.where(below, np.minimum(low, centre - half_width), low)
        high = np.where(above, np.maximum(high, centre + half_width), high)
    return low, high


def exponent_region(problem: Problem, exponents: Sequence[Interval]) -> tuple[Array, Array]:
    """The box, in logarithms, that holds all exponents the data allow."""
    low, high = problem.bounds
    for i, interval in enumerate(exponents):
        if not interval.low_open:
            low[i] = np.log(interval.low)
        if not interval.high_open:
            high[i] = np.log(interval.high)
    return low, high


def prediction_direction(problem: Problem, axes: Axes) -> Callable[[Array], Array]:
    """The combination of amplitudes that is the law's value at one place on the axes."""

    def direction(exponents: Array) -> Array:
        return problem.law.basis(exponents, axes)[:, 0, :]

    return direction


def amplitude_direction(problem: Problem, index: int) -> Callable[[Array], Array]:
    """The combination that is one amplitude itself, in stated units."""
    unit = np.eye(len(problem.law.amplitudes))[index]

    def direction(exponents: Array) -> Array:
        return problem.stated(exponents, np.broadcast_to(unit, (len(exponents), len(unit))))[1]

    return direction


@dataclass(frozen=True)
class Profile:
    """A solution together with everything its intervals follow from."""

    problem: Problem
    solution: Solution
    noise: Noise
    level: float
    edge: float
    """The objective on the edge of the profile region."""
    exponents: tuple[Interval, ...]
    """Interval of each exponent."""

    @classmethod
    def of(cls, problem: Problem, solution: Solution, *, level: float = 0.95) -> "Profile":
        """Estimate the noise and profile the exponents; needs more points than parameters."""
        noise = estimate_noise(problem, solution)
        edge = threshold(solution, noise, level)
        count = len(problem.law.exponents)
        intervals = tuple(exponent_interval(problem, solution, i, edge) for i in range(count))
        return cls(problem, solution, noise, level, edge, intervals)

    def intervals(self) -> dict[str, Interval]:
        """Interval of every parameter by name."""
        law = self.problem.law
        found = {
            name: linear_interval(self.problem, self.exponents, self.edge, amplitude_direction(self.problem, i))
            for i, name in enumerate(law.amplitudes)
        }
        stated, _ = self.problem.stated(self.solution.exponents[None], self.solution.amplitudes[None])
        units = stated[0] / self.solution.exponents  # 1, but for those that are lengths or counts
        exponents = zip(law.exponents, self.exponents, units, strict=True)
        return found | {e.name: interval.times(float(unit)) for e, interval, unit in exponents}

    def predict(self, axes: Axes) -> float:
        """The law's value at one place on the axes."""
        basis = self.problem.law.basis(self.solution.exponents[None], axes)
        return float(basis[0, 0] @ self.solution.amplitudes)

    def prediction_interval(self, axes: Axes, *, new_measurement: bool = False) -> Interval:
        """Interval of the law's value at one place, or of a new single measurement there."""
        extra = 0.0
        if new_measurement:
            extra = float(self.predict(axes) if self.problem.relative else np.median(self.problem.sigma)) ** 2
        direction = prediction_direction(self.problem, axes)
        return linear_interval(self.problem, self.exponents, self.edge, direction, extra_variance=extra)


def jacobian_of(problem: Problem, solution: Solution) -> Array:
    """Derivative of the residuals by the amplitudes in play and the logarithms of the exponents, at the optimum."""
    free = (solution.amplitudes != 0) | problem.free
    fitted = problem.model(solution.exponents, solution.amplitudes)
    columns = problem.weighted(solution.exponents[None], fitted[None])[0][:, free]
    moved = problem.law.slope(solution.exponents[None], solution.amplitudes[None], problem.axes)[0]
    moved = moved * solution.exponents / problem.sigma[:, None]
    if problem.scale == "log":
        moved = moved / fitted[:, None]
    return np.concatenate([columns, moved], axis=1)


@dataclass(frozen=True)
class Conditioning:
    """How well the points separate the parameters, near the optimum."""

    correlation: Array
    """[parameters, parameters]; rows of parameters at zero are 0."""
    condition_number: float
    """Of the residual Jacobian with columns of unit length."""
    weakest: tuple[str, ...]
    """The parameters that dominate the direction the data see least."""


def conditioning(problem: Problem, solution: Solution) -> Conditioning:
    """Correlation, condition number and weakest direction from the Jacobian at the optimum.

    The exponent's column is taken at a fixed value of the law in the middle of the measured range, which removes
    the trade-off that only comes from quoting A at 1 px. (Scaled axes have their middle at 1 already.)
    """
    law, exponents = problem.law, solution.exponents
    fitted = problem.model(exponents, solution.amplitudes)
    columns = problem.weighted(exponents[None], fitted[None])[0]
    moved = law.slope(exponents[None], solution.amplitudes[None], problem.axes)[0] / problem.sigma[:, None]
    if problem.scale == "log":
        moved = moved / fitted[:, None]
    jacobian = np.concatenate([columns, moved], axis=1)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    spread = np.sqrt(np.clip(np.diagonal(covariance), 1e-300, None))
    correlation = np.clip(covariance / spread / spread[:, None], -1, 1)

    centred = moved
    if not problem.scales:
        middle = {axis.column: np.array([np.exp(np.mean(np.log(problem.axes[axis.column])))]) for axis in law.axes}
        size = law.basis(exponents[None], middle)[0, 0]
        drift = law.basis_gradient(exponents[None], middle)[0, 0] / size[:, None]
        centred = moved - np.einsum("nk,kq,k->nq", columns, drift, solution.amplitudes)
    scaled = np.concatenate([columns, centred], axis=1)
    length = np.linalg.norm(scaled, axis=0)
    # an exponent whose amplitude is 0 moves nothing; other checks name it
    seen = length > 0
    scaled = scaled[:, seen] / length[seen]
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    number = float(singular[0] / singular[-1]) if singular[-1] > 0 else np.inf
    weak = np.abs(directions[-1])
    names = [
        str(name)
        for name, weight in zip(np.array(law.parameters)[seen], weak, strict=True)
        if weight > 0.5 * weak.max()
    ]
    return Conditioning(correlation, number, tuple(names))
