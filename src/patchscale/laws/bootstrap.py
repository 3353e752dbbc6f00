"""Clustered wild bootstrap: how far parameters and predictions move when whole curves are disturbed together.

Every draw multiplies the residuals of each cluster (a curve, a family) by one of Webb's six weights (Webb 2023, for few
clusters), adds them to the fitted law and fits again from the optimum, all draws at once. Residuals are first enlarged
for what the parameters took of them, so that their squares have the right mean (CR2; Bell and McCaffrey 2002).

How well few residuals tell a spread depends on what is asked: a prediction that rests on three curves has about three
degrees of freedom, however many there are elsewhere. So every interval is that of the draws, stretched about the fitted
value by t / z, with t for the degrees of freedom of the asked quantity itself (Satterthwaite's, as Bell and McCaffrey
2002 and Imbens and Kolesar 2016 count them). `benchmarks/coverage.py` simulates what this comes to.

B draws, n points, q exponents, k amplitudes, m places or other quantities, r directions the fit can move in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as t_distribution

from patchscale.laws.descent import descend
from patchscale.laws.forms import Array, Axes
from patchscale.laws.uncertainty import Interval, jacobian_of
from patchscale.laws.varpro import CHUNK, Problem, Solution

WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
MIN_CLUSTERS = 5
"""With fewer, weights per cluster take too few values; rows are drawn one by one instead."""
LEAST_SPARED = 0.1
"""A direction of a cluster's residuals of which the fit left less than this share tells nothing; no more is undone."""
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
    freedom: "Freedom"
    """Counts the degrees of freedom of whatever is computed from the draws."""

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
        rng = np.random.default_rng(seed)
        weights = WEBB[rng.integers(0, len(WEBB), size=(draws, count))][:, clusters]
        fitted = problem.model(solution.exponents, solution.amplitudes)
        directions = directions_of(problem, solution)
        shares = [_enlarging(directions[clusters == cluster]) for cluster in range(count)]
        moves = weights * by_cluster(shares, residuals_of(problem, fitted)[:, None], clusters)[:, 0]
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
            freedom=Freedom(directions, clusters, shares, moves @ directions),
        )

    def parameters(self) -> Array:
        """Amplitudes (in stated units), then exponents, of every draw: [B, k + q]."""
        exponents, amplitudes = self.problem.stated(self.exponents, self.amplitudes)
        return np.concatenate([amplitudes, exponents], axis=1)

    def intervals(self) -> dict[str, Interval]:
        """Interval of every parameter by name; an end at a bound of the search is open."""
        law, found = self.problem.law, self.solution
        stated, amplitudes = self.problem.stated(found.exponents[None], found.amplitudes[None])
        low, high = self.ends(self.parameters()[:, : len(law.amplitudes)], amplitudes[0])
        low = np.where(self.problem.free, low, np.maximum(low, 0))
        answer = {name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(law.amplitudes)}
        low, high = map(np.exp, self.ends(np.log(self.exponents), np.log(found.exponents)))
        for exponent, unit, *ends in zip(law.exponents, stated[0] / found.exponents, low, high, strict=True):
            below, above = float(max(ends[0], exponent.low)), float(min(ends[1], exponent.high))
            answer[exponent.name] = Interval.between(
                below, above, low_open=below < exponent.low * 1.01, high_open=above > exponent.high / 1.01
            ).times(float(unit))
        return answer

    def ends(self, values: Array, at: Array) -> tuple[Array, Array]:
        """Both ends [m] of the interval of what every draw computes: values [B, m]; `at` [m] is from the fit itself."""
        return percentiles(self.stretched(values, at), self.level)

    def stretched(self, values: Array, at: Array) -> Array:
        """Values [B, m] of the draws moved away from those of the fit, `at` [m]: their percentiles are an interval."""
        dof = self.freedom.of(np.clip(values, *percentiles(values, self.level)))
        quantile = (1 + self.level) / 2
        return np.asarray(at + (values - at) * (t_distribution.ppf(quantile, dof) / norm.ppf(quantile)))

    def draws(self, axes: Axes) -> Array:
        """The law at m places by every draw: [B, m]."""
        return np.einsum("bmk,bk->bm", self.problem.law.basis(self.exponents, axes), self.amplitudes)


def noise_draws(
    problem: Problem, solution: Solution, *, variance: float, dof: int, draws: int, seed: int = 0
) -> tuple[Array, Array]:
    """Exponents [B, q] and amplitudes [B, k] fitted again to normal noise: draws for a fit that has a profile.

    `variance` is that of a residual, known to `dof` degrees of freedom: each draw has a variance of its own.
    """
    rng = np.random.default_rng(seed)
    fitted = problem.model(solution.exponents, solution.amplitudes)
    size = np.sqrt(variance * dof / rng.chisquare(dof, size=(draws, 1)))
    scale = fitted / problem.measured if problem.relative and problem.scale == "plain" else 1.0
    measured = disturbed(problem, fitted, size * rng.normal(size=(draws, problem.num_points)) * scale)
    # noise that would take a loss below 0 is cut
    measured = measured if problem.scale == "logit" else np.maximum(measured, 1e-3 * fitted)
    start = np.tile(np.log(solution.exponents), (draws, 1))
    found = descend(problem, start, measured=measured, rel=DRAW_REL, iterations=100)
    return np.exp(found.places), found.at.amplitudes


@dataclass(frozen=True)
class Freedom:
    """Degrees of freedom of the spread of whatever follows from the disturbed residuals of a fit."""

    directions: Array
    """[n, r]: of residuals that move the fit; orthonormal."""
    clusters: NDArray[np.intp]
    """[n]."""
    shares: list[Array]
    """For each cluster the matrix that enlarged its residuals."""
    scores: Array
    """[B, r]: how far each draw moved the residuals along the directions."""

    def of(self, values: Array) -> Array:
        """For each column of values [B, m]; never below 1, as no spread is known to less.

        To first order a quantity is the sum over clusters of a'e, with e the cluster's residuals and `a` from a
        regression of its draws on the scores. Its variance is estimated by the sum of (a'e)^2, which for residuals of
        equal variance has mean tr K and variance 2 tr K^2, K the covariance of the sums;
        chi-square on (tr K)^2 / tr K^2 degrees of freedom has the same ratio of the two.
        """
        centred = self.scores - self.scores.mean(axis=0)
        slopes = np.linalg.pinv(centred, rcond=1e-8) @ (values - values.mean(axis=0))
        weights = by_cluster(self.shares, self.directions @ slopes, self.clusters)
        own = _sums(weights**2, self.clusters)
        taken = _sums(self.directions[:, :, None] * weights[:, None, :], self.clusters)
        trace = own.sum(axis=0) - (taken**2).sum(axis=(0, 1))
        both = np.einsum("grm,gsm->rsm", taken, taken)
        of_square = (own**2).sum(axis=0) - 2 * (own * (taken**2).sum(axis=1)).sum(axis=0) + (both**2).sum(axis=(0, 1))
        known = (trace > 0) & (of_square > 0)
        return np.maximum(np.divide(trace**2, of_square, out=np.full_like(trace, len(self.shares)), where=known), 1.0)


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


def _enlarging(own: Array) -> Array:
    """(I - H)^-1/2 of a cluster, H = own own' its block of the hat matrix; own [its points, r]."""
    values, vectors = np.linalg.eigh(own @ own.T)
    return np.asarray((vectors / np.sqrt(np.clip(1 - values, LEAST_SPARED, 1))) @ vectors.T)


def by_cluster(matrices: list[Array], columns: Array, clusters: NDArray[np.intp]) -> Array:
    """Every cluster's rows of columns [n, m] times its matrix."""
    answer = np.empty_like(columns)
    for cluster, matrix in enumerate(matrices):
        own = clusters == cluster
        answer[own] = matrix @ columns[own]
    return answer


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
    """Both ends of the middle `level` of the draws [B, ...], exact for any number of them (rank / (B + 1))."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high
