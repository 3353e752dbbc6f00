"""Variable projection: amplitudes by exact non-negative least squares inside, exponents searched outside.

The objective is the sum (never the mean) of squared residuals (model - measured) / sigma. Because the law is linear in
its amplitudes, they are solved for exactly at every trial of the exponents; only the exponents (one, for the patch
law) are searched. See Golub & Pereyra 1973; for scaling laws, Czech et al. (arXiv 2603.22339).

With two to four amplitudes the non-negative problem is solved by trying every subset of amplitudes that may be positive
(a "face") with plain least squares: exact, and vectorised over whole grids of exponents.

G exponent vectors, q exponents, n points, k amplitudes, m amplitudes of one face.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import qmc

from patchscale.laws.forms import Array, Axes, Law

GRID_POINTS = {1: 241, 2: 41, 3: 15}
"""Grid points per exponent, by number of exponents."""

AGREES_REL = 1e-6
"""A start agrees if its objective is within this share of the best."""

TINY = 1e-16
"""Squared relative residual per point that is rounding, not misfit."""


@dataclass(frozen=True)
class Problem:
    """A law, the points it is fitted to, and the scale of each residual."""

    law: Law
    axes: Axes
    measured: Array
    sigma: Array
    """Residuals are (model - measured) / sigma."""
    relative: bool = True
    """Whether sigma is the measured value itself; otherwise it is a standard deviation known to be there at least."""

    @property
    def num_points(self) -> int:
        """Rows, replicates counted one by one."""
        return len(self.measured)

    @property
    def num_parameters(self) -> int:
        """Amplitudes and exponents."""
        return len(self.law.parameters)

    @property
    def levels(self) -> NDArray[np.intp]:
        """For each point, the number of its distinct place on the axes."""
        places = np.stack([self.axes[axis.column] for axis in self.law.axes], axis=1)
        return np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Search bounds of the logarithms of the exponents."""
        lows, highs = zip(*((e.low, e.high) for e in self.law.exponents), strict=True)
        return np.log(np.array(lows)), np.log(np.array(highs))

    def model(self, exponents: Array, amplitudes: Array) -> Array:
        """The law at the points, for one parameter vector: [n]."""
        return (self.law.basis(exponents[None], self.axes) @ amplitudes[None, :, None])[0, :, 0]


@dataclass(frozen=True)
class Face:
    """Plain least squares on one subset of the amplitudes, at G exponent vectors at once."""

    members: list[int]
    amplitudes: Array
    """[G, m], any sign."""
    objective: Array
    """[G]."""
    root: Array
    """[G, m, m]: root @ root.T is the inverse of the normal matrix."""


def faces(problem: Problem, exponents: Array) -> Iterator[Face]:
    """Every subset of amplitudes, solved with plain least squares by QR on columns of unit length."""
    columns = problem.law.basis(exponents, problem.axes) / problem.sigma[:, None]
    target = problem.measured / problem.sigma
    count = columns.shape[-1]
    for size in range(1, count + 1):
        for members in combinations(range(count), size):
            chosen = columns[..., list(members)]
            length = np.linalg.norm(chosen, axis=1, keepdims=True)
            q, r = np.linalg.qr(chosen / length)
            # columns that coincide to rounding leave the face unsolvable; its smaller faces hold the same models
            solvable = np.abs(np.diagonal(r, axis1=1, axis2=2)).min(axis=1) > 1e-12
            r = np.where(solvable[:, None, None], r, np.eye(size))
            root = np.linalg.inv(r) / length.transpose(0, 2, 1)
            projected = np.einsum("gnm,n->gm", q, target)
            residual = target - np.einsum("gnm,gm->gn", q, projected)
            yield Face(
                list(members),
                amplitudes=np.einsum("gij,gj->gi", root, projected),
                objective=np.where(solvable, np.einsum("gn,gn->g", residual, residual), np.inf),
                root=root,
            )


def project(problem: Problem, exponents: Array) -> tuple[Array, Array]:
    """The best non-negative amplitudes [G, k] and the objective [G] at each exponent vector [G, q]."""
    best = np.full(len(exponents), np.inf)
    amplitudes = np.zeros((len(exponents), len(problem.law.amplitudes)))
    for face in faces(problem, exponents):
        better = (face.amplitudes >= 0).all(axis=1) & (face.objective < best)
        best = np.where(better, face.objective, best)
        padded = np.zeros_like(amplitudes)
        padded[:, face.members] = face.amplitudes
        amplitudes = np.where(better[:, None], padded, amplitudes)
    return amplitudes, best


@dataclass(frozen=True)
class Solution:
    """The best fit found, and how many independent starts found it."""

    exponents: Array
    amplitudes: Array
    objective: float
    """Sum of squared residuals."""
    starts: int
    starts_agreeing: float
    """Share of the scattered starts that reached the best objective."""

    @property
    def parameters(self) -> Array:
        """Amplitudes, then exponents."""
        return np.concatenate([self.amplitudes, self.exponents])


def solve(problem: Problem, *, starts: int = 16, seed: int = 0) -> Solution:
    """Search the exponents: a log grid, then bounded trust-region refinement from scattered (Sobol) starts.

    Deterministic for a given `seed`. The best grid points are refined too, so that `starts` only measures how hard
    the surface is; it does not decide the result.
    """
    low, high = problem.bounds
    grid = log_grid(low, high, GRID_POINTS[len(low)])
    _, on_grid = project(problem, np.exp(grid))
    order = np.argsort(on_grid)
    scale = max(float(on_grid[order[0]]), TINY * problem.num_points)

    sobol = qmc.Sobol(d=len(low), rng=np.random.default_rng(seed))
    scattered = low + (high - low) * sobol.random_base2(max(1, (starts - 1).bit_length()))[:starts]
    refined = [_refine(problem, start, scale) for start in scattered]
    candidates = [*refined, *(_refine(problem, grid[i], scale) for i in order[:3]), (grid[order[0]], on_grid[order[0]])]
    place, objective = min(candidates, key=lambda candidate: candidate[1])

    reached = objective * (1 + AGREES_REL) + TINY * problem.num_points
    exponents = np.exp(place)
    amplitudes, _ = project(problem, exponents[None])
    return Solution(
        exponents=exponents,
        amplitudes=amplitudes[0],
        objective=float(objective),
        starts=len(refined),
        starts_agreeing=float(np.mean([value <= reached for _, value in refined])),
    )


def _refine(problem: Problem, start: Array, scale: float) -> tuple[Array, float]:
    """Bounded trust-region descent in the logarithms of the exponents, from one start.

    Residuals are divided by the root of `scale`, the best objective of the grid, so that tolerances are relative to
    the objective whatever its size. The Jacobian is Kaufman's: exact gradient, second-order term left out.
    """
    low, high = problem.bounds
    weight = 1 / (problem.sigma * np.sqrt(scale))
    solved: dict[bytes, Array] = {}

    def amplitudes_at(place: Array) -> Array:
        # the residuals and the Jacobian are asked for at the same places
        if place.tobytes() not in solved:
            solved.clear()
            solved[place.tobytes()] = project(problem, np.exp(place)[None])[0][0]
        return solved[place.tobytes()]

    def residuals(place: Array) -> Array:
        return (problem.model(np.exp(place), amplitudes_at(place)) - problem.measured) * weight

    def jacobian(place: Array) -> Array:
        exponents, amplitudes = np.exp(place), amplitudes_at(place)
        moved = problem.law.basis_gradient(exponents[None], problem.axes)[0].transpose(0, 2, 1) @ amplitudes
        moved = moved * exponents * weight[:, None]
        free = problem.law.basis(exponents[None], problem.axes)[0][:, amplitudes > 0] * weight[:, None]
        if free.size:
            q, _ = np.linalg.qr(free / np.linalg.norm(free, axis=0))
            moved = moved - q @ (q.T @ moved)
        return moved

    inside = np.clip(start, low + 1e-9, high - 1e-9)
    found = least_squares(
        residuals, inside, jac=jacobian, bounds=(low, high), method="trf", ftol=1e-14, xtol=1e-12, gtol=1e-12
    )
    return found.x, float(2 * found.cost * scale)


def log_grid(low: Array, high: Array, points: int) -> Array:
    """Evenly spaced points of a box, ends included: [points ** q, q]."""
    axes = np.meshgrid(*(np.linspace(a, b, points) for a, b in zip(low, high, strict=True)), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


def zoom(function: Callable[[Array], Array], low: Array, high: Array, *, rounds: int = 9) -> tuple[Array, float]:
    """Minimise over a box by laying a grid, then finer ones around the best point; values may be infinite.

    `function` maps places [G, q] to values [G]. Returns the best place and its value.
    """
    points = GRID_POINTS[len(low)]
    best_place, best = low, np.inf
    for _ in range(rounds):
        grid = log_grid(low, high, points)
        values = function(grid)
        i = int(np.argmin(values))
        if values[i] < best:
            best_place, best = grid[i], float(values[i])
        if not np.isfinite(best):
            break
        step = (high - low) / (points - 1)
        low, high = np.maximum(low, best_place - 2 * step), np.minimum(high, best_place + 2 * step)
        points = 21 if len(low) == 1 else 9
    return best_place, best
