"""Search of the exponents: Levenberg-Marquardt in their logarithms, for many starts or bootstrap draws at once.

Variable projection (Golub & Pereyra 1973): at every trial the amplitudes are solved for exactly, so only the exponents
move. The Jacobian is Kaufman's: its gradient is exact, a term of second order is left out. Steps that leave the box are
cut at its edge, and exponents that press against it stand still.

G searches, q exponents, n points, k amplitudes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patchscale.laws.forms import Array
from patchscale.laws.nnls import nonnegative

if TYPE_CHECKING:
    from patchscale.laws.varpro import Problem

REWEIGHTED_REL = 1e-9
"""Differences of logarithms are solved by reweighting until the law moves by less than this share."""
MAX_REWEIGHTINGS = 25


@dataclass(frozen=True)
class Projected:
    """Amplitudes at their best for given exponents."""

    amplitudes: Array
    """[G, k]."""
    model: Array
    """The law at the points, [G, n]."""
    residuals: Array
    """[G, n], in units of sigma."""

    @property
    def objective(self) -> Array:
        """Sum of squared residuals, [G]."""
        return np.einsum("gn,gn->g", self.residuals, self.residuals)


@dataclass(frozen=True)
class Found:
    """Where each search ended."""

    places: Array
    """Logarithms of the exponents, [G, q]."""
    at: Projected
    converged: NDArray[np.bool_]


def amplitudes_at(
    problem: "Problem", exponents: Array, measured: Array, *, model: Array | None = None, tries: int = MAX_REWEIGHTINGS
) -> Projected:
    """The best amplitudes at exponents [G, q], for one set of measurements [n] or one per search [G, n].

    With differences of logarithms the law is linearised about `model` (the measurements at first) and solved again
    until it stands still: residuals are a few per cent, so each round gains two digits.
    """
    basis = problem.law.basis(exponents, problem.axes)
    measured = np.broadcast_to(measured, basis.shape[:2])
    sigma = problem.sigma
    if problem.scale != "log":
        amplitudes = nonnegative(basis / sigma[:, None], measured / sigma, problem.free)
        values = np.einsum("gnk,gk->gn", basis, amplitudes)
        return Projected(amplitudes, values, (values - measured) / sigma)
    about = measured if model is None else model
    logs = np.log(measured)
    amplitudes = np.zeros((len(basis), basis.shape[-1]))
    values = np.zeros(basis.shape[:2])
    todo = np.arange(len(basis))
    about = np.array(np.broadcast_to(about, basis.shape[:2]))
    for _ in range(tries):
        columns = basis[todo] / (about[todo] * sigma)[:, :, None]
        target = (1 - np.log(about[todo]) + logs[todo]) / sigma
        amplitudes[todo] = nonnegative(columns, target, problem.free)
        values[todo] = np.einsum("gnk,gk->gn", basis[todo], amplitudes[todo])
        # a law far from the points is not trusted with more than a factor of three at once
        moved = np.clip(values[todo], about[todo] / 3, about[todo] * 3)
        still = np.abs(moved / about[todo] - 1).max(axis=1) < REWEIGHTED_REL
        about[todo] = moved
        todo = todo[~still]
        if not len(todo):
            break
    residuals = (np.log(np.maximum(values, measured * 1e-100)) - logs) / sigma
    return Projected(amplitudes, values, residuals)


def descend(
    problem: "Problem",
    starts: Array,
    *,
    measured: Array | None = None,
    held: int | None = None,
    iterations: int = 120,
    rel: float = 1e-13,
) -> Found:
    """Descend from the logarithms `starts` [G, q]; each search may have measurements of its own [G, n].

    `held` names an exponent that stands still. A search has converged if the next step would lower its objective by
    less than the share `rel`.
    """
    low, high = problem.bounds
    places = np.clip(starts, low, high)
    count = len(places)
    target = np.broadcast_to(problem.measured if measured is None else measured, (count, problem.num_points))
    at = amplitudes_at(problem, np.exp(places), target)
    amplitudes, values, residuals = at.amplitudes, at.model, at.residuals
    objective = at.objective
    damping = np.full(count, 1e-3)
    converged = np.zeros(count, bool)
    floor = 1e-26 * problem.num_points
    todo = np.arange(count)
    matrix, gradient = _normal(problem, places, amplitudes, values, residuals)
    for _ in range(iterations):
        if not len(todo):
            break
        u, g, H = places[todo], gradient[todo], matrix[todo]
        blocked = ((u <= low) & (g > 0)) | ((u >= high) & (g < 0))
        if held is not None:
            blocked[:, held] = True
        step = _step(H, g, blocked, damping[todo])
        promised = -np.einsum("gq,gq->g", np.where(blocked, 0.0, g), _step(H, g, blocked, np.full(len(todo), 1e-9)))
        trial = np.clip(u + step, low, high)
        tried = amplitudes_at(problem, np.exp(trial), target[todo], model=_positive(values[todo], target[todo]))
        better = tried.objective < objective[todo]
        small = promised <= rel * objective[todo] + floor
        # no gain although one is promised: at the limit of rounding once the damping is extreme
        stuck = damping[todo] > 1e12
        accepted = todo[better]
        places[accepted] = trial[better]
        amplitudes[accepted] = tried.amplitudes[better]
        values[accepted] = tried.model[better]
        residuals[accepted] = tried.residuals[better]
        objective[accepted] = tried.objective[better]
        damping[todo] = np.where(better, np.maximum(damping[todo] / 8, 1e-14), damping[todo] * 6)
        if len(accepted):
            matrix[accepted], gradient[accepted] = _normal(
                problem, places[accepted], amplitudes[accepted], values[accepted], residuals[accepted]
            )
        converged[todo] = small | stuck
        todo = todo[~(small | stuck)]
    return Found(places, Projected(amplitudes, values, residuals), converged)


def _positive(values: Array, measured: Array) -> Array:
    return np.where(values > 0, values, measured)


def _step(matrix: Array, gradient: Array, blocked: NDArray[np.bool_], damping: Array) -> Array:
    """The damped step; no exponent moves by more than a factor of e^2 at once."""
    free = ~blocked
    g = np.where(free, gradient, 0.0)
    eye = np.eye(gradient.shape[1])
    H = matrix * free[:, :, None] * free[:, None, :]
    diagonal = np.einsum("gii->gi", H)
    largest = np.maximum(diagonal.max(axis=1, keepdims=True), 1e-300)
    weight = np.where(free, np.maximum(diagonal, 1e-9 * largest), largest)
    step = -np.linalg.solve(H + eye * (damping[:, None] * weight + ~free * largest)[:, None, :], g[..., None])[..., 0]
    return np.clip(np.where(free, step, 0.0), -2.0, 2.0)


def _normal(
    problem: "Problem", places: Array, amplitudes: Array, values: Array, residuals: Array
) -> tuple[Array, Array]:
    """J^T J and J^T r of Kaufman's Jacobian by the logarithms of the exponents."""
    exponents = np.exp(places)
    basis = problem.law.basis(exponents, problem.axes)
    moved = problem.law.slope(exponents, amplitudes, problem.axes) * exponents[:, None, :]
    weight = problem.sigma * (np.maximum(values, problem.measured * 1e-3) if problem.scale == "log" else 1.0)
    moved = moved / np.broadcast_to(weight, values.shape)[:, :, None]
    active = (amplitudes != 0) | problem.free
    columns = basis / np.broadcast_to(weight, values.shape)[:, :, None] * active[:, None, :]
    length = np.sqrt(np.einsum("gnk,gnk->gk", columns, columns))
    columns = columns / np.where(length > 0, length, 1.0)[:, None, :]
    k, q = basis.shape[-1], places.shape[1]
    # a column that is out of play gets a row of its own, so that the reduction keeps the others' rows apart
    stack = np.concatenate([columns, moved, residuals[:, :, None]], axis=2)
    extra = np.zeros((len(stack), k, k + q + 1))
    extra[:, :, :k] = np.eye(k) * np.where(active & (length > 0), 1e-12, 1.0)[:, None, :]
    upper: Array = np.linalg.qr(np.concatenate([stack, extra], axis=1), mode="r")  # type: ignore[assignment]
    trailing, rest = upper[:, k:, k : k + q], upper[:, k:, k + q]
    return np.einsum("gij,gik->gjk", trailing, trailing), np.einsum("gij,gi->gj", trailing, rest)
