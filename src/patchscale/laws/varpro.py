"""Variable projection: amplitudes by exact non-negative least squares inside, exponents searched outside.

The objective is the sum (never the mean) of squared residuals (model - measured) / sigma. Because the law is linear in
its amplitudes, they are solved for exactly at every trial of the exponents; only the exponents (one, for the patch
law) are searched. See Golub & Pereyra 1973; for scaling laws, Czech et al. (arXiv 2603.22339).

The non-negative problem is solved exactly and for whole grids of exponents at once (`nnls.py`). Profile intervals need
every subset of amplitudes that may be positive (a "face") as well, which is possible for a few of them only.

G exponent vectors, q exponents, n points, k amplitudes, m amplitudes of one face.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from patchscale.laws.descent import MAX_REWEIGHTINGS, amplitudes_at, descend
from patchscale.laws.forms import Array, Axes, Law

GRID_POINTS = {1: 241, 2: 41, 3: 15}
"""Grid points per exponent, by number of exponents."""

TRIALS_LOG2 = 10
"""Scattered trial points, as a power of two, where exponents are too many for a grid."""

CHUNK = 4_000_000
"""Numbers held at once while trial points are ranked."""

FACE_REWEIGHTINGS = 5
"""Rounds of linearisation of a face on the log scale."""

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
    """Whether sigma is only a scale; otherwise it is a standard deviation known to be there at least."""
    scale: str = "plain"
    """plain: residuals as above. log: (log model - log measured) / sigma. logit: the law describes the logit."""

    scales: Mapping[str, float] = field(default_factory=dict)
    """What each axis was divided by; empty if axes are in stated units."""

    def part(self, kept: NDArray[np.bool_]) -> "Problem":
        """The same problem with some of its points."""
        axes = {name: cells[kept] for name, cells in self.axes.items()}
        return replace(self, axes=axes, measured=self.measured[kept], sigma=self.sigma[kept])

    def stated(self, exponents: Array, amplitudes: Array) -> tuple[Array, Array]:
        """Exponents [G, q] and amplitudes [G, k] for axes in stated units."""
        return self.law.stated(exponents, amplitudes, self.scales) if self.scales else (exponents, amplitudes)

    def weighted(self, exponents: Array, about: Array) -> Array:
        """Derivative of the residuals by the amplitudes [G, n, k]; on the log scale where the law is `about` [G, n]."""
        columns = self.law.basis(exponents, self.axes) / self.sigma[:, None]
        return columns / about[:, :, None] if self.scale == "log" else columns

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which amplitudes may be negative: those the law says, and on the logit scale the floors. [k]."""
        law = self.law
        floors = (law.floor,) if self.scale == "logit" else ()
        return np.array([name in law.free or name.split("[")[0] in floors for name in law.amplitudes])

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
    """Every subset of amplitudes, solved with plain least squares by QR on columns of unit length.

    On the log scale each subset is linearised about its own best law. Subsets without a free amplitude are left out.
    """
    count = len(problem.law.amplitudes)
    always = [i for i in range(count) if problem.free[i]]
    for size in range(1, count + 1):
        for members in combinations(range(count), size):
            if not set(always) <= set(members):
                continue
            about = np.broadcast_to(problem.measured, (len(exponents), problem.num_points))
            for _ in range(FACE_REWEIGHTINGS if problem.scale == "log" else 1):
                face, values = _face(problem, exponents, list(members), about)
                about = np.clip(values, about / 3, about * 3)
            yield face


def _face(problem: Problem, exponents: Array, members: list[int], about: Array) -> tuple[Face, Array]:
    """One face about the values `about` [G, n], and the law's values there."""
    basis = problem.law.basis(exponents, problem.axes)[..., members]
    if problem.scale == "log":
        columns = basis / (about * problem.sigma)[:, :, None]
        target = (1 - np.log(about / problem.measured)) / problem.sigma
    else:
        columns = basis / problem.sigma[:, None]
        target = np.broadcast_to(problem.measured / problem.sigma, about.shape)
    length = np.linalg.norm(columns, axis=1, keepdims=True)
    q, r = np.linalg.qr(columns / length)
    # columns that coincide to rounding leave the face unsolvable; its smaller faces hold the same models
    solvable = np.abs(np.diagonal(r, axis1=1, axis2=2)).min(axis=1) > 1e-12
    r = np.where(solvable[:, None, None], r, np.eye(len(members)))
    root = np.linalg.inv(r) / length.transpose(0, 2, 1)
    projected = np.einsum("gnm,gn->gm", q, target)
    residual = target - np.einsum("gnm,gm->gn", q, projected)
    amplitudes = np.einsum("gij,gj->gi", root, projected)
    face = Face(
        members,
        amplitudes=amplitudes,
        objective=np.where(solvable, np.einsum("gn,gn->g", residual, residual), np.inf),
        root=root,
    )
    return face, np.einsum("gnm,gm->gn", basis, amplitudes)


def project(problem: Problem, exponents: Array, *, tries: int = MAX_REWEIGHTINGS) -> tuple[Array, Array]:
    """The best amplitudes [G, k] and the objective [G] at each exponent vector [G, q]."""
    chunk = max(1, CHUNK // (problem.num_points * len(problem.law.amplitudes)))
    parts = [
        amplitudes_at(problem, exponents[i : i + chunk], problem.measured, tries=tries)
        for i in range(0, len(exponents), chunk)
    ]
    return np.concatenate([part.amplitudes for part in parts]), np.concatenate([part.objective for part in parts])


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
    """Search the exponents: a log grid (up to three) or scattered points, then descent from scattered (Sobol) starts.

    Deterministic for a given `seed`. The best trial points are descended from too, so that `starts` only measures how
    hard the surface is; it does not decide the result.
    """
    low, high = problem.bounds
    sobol = qmc.Sobol(d=len(low), rng=np.random.default_rng(seed))
    scattered = low + (high - low) * sobol.random_base2(max(1, (starts - 1).bit_length()))[:starts]
    if len(low) in GRID_POINTS:
        trials = log_grid(low, high, GRID_POINTS[len(low)])
    else:
        trials = low + (high - low) * sobol.reset().random_base2(TRIALS_LOG2)
    # the trials are only ranked
    order = np.argsort(project(problem, np.exp(trials), tries=2)[1])
    found = descend(problem, np.concatenate([scattered, trials[order[:3]]]))
    objective = found.at.objective
    best = int(np.argmin(objective))
    reached = objective[best] * (1 + AGREES_REL) + TINY * problem.num_points
    return Solution(
        exponents=np.exp(found.places[best]),
        amplitudes=found.at.amplitudes[best],
        objective=float(objective[best]),
        starts=starts,
        starts_agreeing=float(np.mean(objective[:starts] <= reached)),
    )


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
