"""Bootstrap of a law: how far parameters and predictions move when the measurements are drawn anew.

Every draw adds noise to the fitted law and fits again from the optimum, all draws at once. Noise is of two kinds: what
a row has of its own, and what all rows of a cluster (a curve, a family) share. How much is shared the residuals tell,
and because a few curves tell it badly, every draw has a share and a variance of its own, as likely as the residuals
make them; before, nothing is shared with probability `NOTHING_SHARED`, else all shares between 0 and 1 are equally
likely. Only what the parameters leave of the residuals is looked at (the restricted likelihood of Patterson and
Thompson 1971). Why not a wild bootstrap, and why this prior:
`docs/decisions/0017-noise-of-rows-and-curves.md`.

B draws, n points, q exponents, k amplitudes, m places.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscale.laws.descent import descend
from patchscale.laws.forms import Array, Axes
from patchscale.laws.uncertainty import Interval, jacobian_of
from patchscale.laws.varpro import CHUNK, Problem, Solution

MIN_CLUSTERS = 5
"""With fewer, what they share cannot be told from the law; rows are drawn one by one instead."""
SHARES = 400
"""Shares of the variance between 0 and 1 that are weighed, closer to each other towards 0: large clusters tell more."""
NOTHING_SHARED = 0.25
"""How likely it is before the residuals are seen that clusters share nothing: found by simulation, see the decision."""
SEEN = 1e-3
"""A sum over a cluster is free if the parameters leave it this much of its size; the rest tells nothing of sharing."""
DRAW_REL = 1e-8
"""A draw is found once the next step would lower its objective by less than this share."""


@dataclass(frozen=True)
class Bootstrap:
    """The refits of a solution to disturbed data."""

    problem: Problem
    solution: Solution
    level: float
    seed: int
    clusters: int
    """How many independent pieces were disturbed."""
    clustered_by: str
    """What a piece is, in words."""
    exponents: Array
    """[B, q]."""
    amplitudes: Array
    """[B, k], for scaled axes."""
    converged: float
    """Share of the draws whose search came to rest."""
    shared: float
    """The share of the noise variance that rows of a cluster have in common: mean over the draws."""

    @classmethod
    def of(
        cls,
        problem: Problem,
        solution: Solution,
        *,
        clusters: NDArray[np.intp],
        clustered_by: str,
        draws: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> "Bootstrap":
        """Draw and refit; `clusters` [n] numbers each point's cluster, from 0."""
        count = int(clusters.max()) + 1
        if count < MIN_CLUSTERS:
            clusters, count = np.arange(problem.num_points), problem.num_points
            clustered_by = f"row by row (fewer than {MIN_CLUSTERS} of {clustered_by})"
        fitted = problem.model(solution.exponents, solution.amplitudes)
        moves, shared = noise(problem, solution, fitted, clusters, draws=draws, seed=seed)
        measured = disturbed(problem, fitted, moves)
        start = np.log(solution.exponents)
        size = problem.num_points * (len(problem.law.amplitudes) + len(problem.law.exponents) + 2)
        chunk = max(1, CHUNK // size)
        places, amplitudes, converged = [], [], []
        for i in range(0, draws, chunk):
            part = measured[i : i + chunk]
            found = descend(problem, np.tile(start, (len(part), 1)), measured=part, rel=DRAW_REL, iterations=100)
            places.append(found.places)
            amplitudes.append(found.at.amplitudes)
            converged.append(found.converged)
        return cls(
            problem=problem,
            solution=solution,
            level=level,
            seed=seed,
            clusters=count,
            clustered_by=clustered_by,
            exponents=np.exp(np.concatenate(places)),
            amplitudes=np.concatenate(amplitudes),
            converged=float(np.mean(np.concatenate(converged))),
            shared=shared,
        )

    def parameters(self) -> Array:
        """Amplitudes (in stated units), then exponents, of every draw: [B, k + q]."""
        exponents, amplitudes = self.problem.stated(self.exponents, self.amplitudes)
        return np.concatenate([amplitudes, exponents], axis=1)

    def intervals(self) -> dict[str, Interval]:
        """Interval of every parameter by name; an end at a bound of the search is open."""
        law, stated = self.problem.law, self.parameters()
        low, high = percentiles(stated, self.level)
        answer = {name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(law.parameters)}
        # Bounds of the search are for scaled axes; each draw may have a unit of its own.
        first, last = percentiles(self.exponents, self.level)
        for i, exponent in enumerate(law.exponents):
            ends = answer[exponent.name]
            answer[exponent.name] = Interval.between(
                ends.low,
                ends.high,
                low_open=bool(first[i] < exponent.low * 1.01),
                high_open=bool(last[i] > exponent.high / 1.01),
            )
        return answer

    def draws(self, axes: Axes) -> Array:
        """The law at m places by every draw: [B, m]."""
        return np.einsum("bmk,bk->bm", self.problem.law.basis(self.exponents, axes), self.amplitudes)


def noise(
    problem: Problem, solution: Solution, fitted: Array, clusters: NDArray[np.intp], *, draws: int, seed: int
) -> tuple[Array, float]:
    """Noise of every draw, [B, n] in units of sigma, and the mean share of its variance that clusters have in common.

    A residual is u + v with v the same in a cluster; var(v) / var(u) = ratio. Where the fit is free, the sums of
    the clusters have independent parts with variance proportional to 1 + ratio x `sizes`; the rest has that of u.
    """
    rng = np.random.default_rng(seed)
    directions = directions_of(problem, solution)
    residuals = residuals_of(problem, fitted)
    residuals = residuals - directions @ (directions.T @ residuals)
    dof = len(residuals) - directions.shape[1]
    count = int(clusters.max()) + 1
    members = np.bincount(clusters).astype(float)
    sums = _sums(np.column_stack([residuals, directions]), clusters)
    sizes, vectors = np.linalg.eigh(np.diag(members) - sums[:, 1:] @ sums[:, 1:].T)
    seen = sizes > SEEN * members.max()
    if count == len(clusters) or not seen.any():
        share, weight, rest = np.zeros(1), np.ones(1), np.array([residuals @ residuals])
    else:
        steps = (np.arange(SHARES) + 0.5) / SHARES
        share = np.append(0.0, steps**2)
        prior = np.append(NOTHING_SHARED, (1 - NOTHING_SHARED) * steps / steps.sum())  # steps: flat in the share
        between = (vectors.T @ sums[:, 0])[seen] ** 2 / sizes[seen]
        widened = 1 + (share / (1 - share))[:, None] * sizes[seen]
        rest = max(residuals @ residuals - between.sum(), 0.0) + (between / widened).sum(axis=1)
        likelihood = -0.5 * np.log(widened).sum(axis=1) - dof / 2 * np.log(np.maximum(rest, 1e-300))
        weight = prior * np.exp(likelihood - likelihood.max())
    drawn = rng.choice(len(share), size=draws, p=weight / weight.sum())
    variance = rest[drawn] / rng.chisquare(dof, size=draws)
    # stated noise is a floor: chance agreement does not make it smaller
    variance = variance if problem.relative else np.maximum(variance, 1.0 - share[drawn])
    own = rng.normal(size=(draws, len(residuals)))
    common = rng.normal(size=(draws, count))[:, clusters] * np.sqrt(share / (1 - share))[drawn, None]
    return np.sqrt(variance)[:, None] * (own + common), float(share[drawn].mean())


def noise_draws(
    problem: Problem, solution: Solution, *, variance: float, dof: int, draws: int, seed: int = 0
) -> tuple[Array, Array]:
    """Exponents [B, q] and amplitudes [B, k] fitted again to normal noise: draws for a fit that has a profile.

    `variance` is that of a residual, known to `dof` degrees of freedom: each draw has a variance of its own.
    """
    rng = np.random.default_rng(seed)
    fitted = problem.model(solution.exponents, solution.amplitudes)
    size = np.sqrt(variance * dof / rng.chisquare(dof, size=(draws, 1)))
    size = size if problem.relative else np.maximum(size, 1.0)  # stated noise is a floor, as for clusters
    scale = fitted / problem.measured if problem.relative and problem.scale == "plain" else 1.0
    measured = disturbed(problem, fitted, size * rng.normal(size=(draws, problem.num_points)) * scale)
    # noise that would take a loss below 0 is cut
    measured = measured if problem.scale == "logit" else np.maximum(measured, 1e-3 * fitted)
    start = np.tile(np.log(solution.exponents), (draws, 1))
    found = descend(problem, start, measured=measured, rel=DRAW_REL, iterations=100)
    return np.exp(found.places), found.at.amplitudes


def residuals_of(problem: Problem, fitted: Array) -> Array:
    """Measured less fitted, in units of sigma on the scale of the residuals: [n]."""
    if problem.scale == "log":
        return np.asarray(np.log(problem.measured / fitted) / problem.sigma)
    return (problem.measured - fitted) / problem.sigma


def directions_of(problem: Problem, solution: Solution) -> Array:
    """An orthonormal basis of the residuals that move the fit, near the optimum: [n, r]."""
    jacobian = jacobian_of(problem, solution)
    left, singular, _ = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0).clip(1e-300), full_matrices=False)
    return left[:, singular > 1e-9 * singular[0]]


def _sums(values: Array, clusters: NDArray[np.intp]) -> Array:
    """Sums over the rows of each cluster: [n, ...] -> [clusters, ...]."""
    order = np.argsort(clusters, kind="stable")
    return np.asarray(np.add.reduceat(values[order], np.searchsorted(clusters[order], np.arange(clusters.max() + 1))))


def disturbed(problem: Problem, fitted: Array, moves: Array) -> Array:
    """The fitted values moved by `moves` [B, n], in units of sigma on the scale of the residuals."""
    if problem.scale == "log":
        return fitted * np.exp(moves * problem.sigma)
    return fitted + moves * problem.sigma


def percentiles(values: Array, level: float) -> tuple[Array, Array]:
    """Both ends of the middle `level` of draws [B, ...], by rank / (B + 1): exact from 2 / (1 - level) - 1 draws on."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high
