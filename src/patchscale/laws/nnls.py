"""Least squares with some unknowns not negative, for many small problems at once; exact.

Block principal pivoting (Portugal, Judice and Vicente 1994; Kim and Park 2011): guess which unknowns are positive,
solve plain least squares for them, exchange all that contradict the guess, and fall back to exchanging one at a time,
which cannot cycle. Each least-squares problem is solved by QR on columns of unit length, never by normal equations.

G problems, n points, k unknowns.
"""

import numpy as np
from numpy.typing import NDArray

from patchscale.laws.forms import Array

RIDGE = 1e-11
"""Added to columns of unit length: columns that coincide to rounding share their amplitude instead of failing."""


def triangle(columns: Array, target: Array) -> tuple[Array, Array, Array]:
    """Columns [G, n, k] and target [G, n] reduced by QR: R [G, k, k], c [G, k] and the lengths [G, k] divided out.

    The sum of squares differs from that of `R x - c` by a constant, for x in units of the lengths.
    """
    length = np.sqrt(np.einsum("gnk,gnk->gk", columns, columns))
    length = np.where(length > 0, length, 1.0)
    count = columns.shape[-1]
    augmented = np.concatenate([columns / length[:, None, :], target[:, :, None]], axis=2)
    if augmented.shape[1] < count + 1:
        padding = np.zeros((len(augmented), count + 1 - augmented.shape[1], count + 1))
        augmented = np.concatenate([augmented, padding], axis=1)
    upper: Array = np.linalg.qr(augmented, mode="r")  # type: ignore[assignment]
    return upper[:, :count, :count], upper[:, :count, count], length


def nonnegative(columns: Array, target: Array, free: NDArray[np.bool_]) -> Array:
    """The x [G, k] that minimises |columns x - target|^2 with x >= 0 except where `free` [k]."""
    upper, reduced, length = triangle(columns, target)
    count = upper.shape[-1]
    scale = np.sqrt(np.einsum("gk,gk->g", reduced, reduced)) + 1e-300
    tolerance = 1e-13 * scale
    positive = np.ones((len(upper), count), bool)
    found = _solve(upper, reduced, positive)
    todo = np.flatnonzero(((found < 0) & ~free).any(axis=1))
    fewest = np.full(len(upper), count + 1)
    chances = np.full(len(upper), 3)
    for _ in range(40 * count):
        if not len(todo):
            break
        R, c, mask = upper[todo], reduced[todo], positive[todo]
        x = found[todo]
        residual = np.einsum("gij,gj->gi", R, x) - c
        dual = np.einsum("gij,gi->gj", R, residual)
        wrong = np.where(mask, (x < 0) & ~free, dual < -tolerance[todo, None])
        number = wrong.sum(axis=1)
        done = number == 0
        better = number < fewest[todo]
        fewest[todo] = np.where(better, number, fewest[todo])
        chances[todo] = np.where(better, 3, chances[todo] - 1)
        single = chances[todo] < 0
        last = count - 1 - np.argmax(wrong[:, ::-1], axis=1)
        one = np.zeros_like(wrong)
        one[np.arange(len(todo)), last] = True
        flip = np.where(single[:, None], one, wrong) & ~done[:, None]
        positive[todo] = mask ^ flip
        todo = todo[~done]
        if len(todo):
            found[todo] = _solve(upper[todo], reduced[todo], positive[todo])
    return np.where(positive, np.where(free, found, np.maximum(found, 0)), 0.0) / length


def _solve(upper: Array, reduced: Array, positive: NDArray[np.bool_]) -> Array:
    """Plain least squares on the positive unknowns; the others are 0."""
    count = upper.shape[-1]
    eye = np.eye(count)
    rows = np.concatenate([upper * positive[:, None, :], eye * np.where(positive, RIDGE, 1.0)[:, None, :]], axis=1)
    right = np.concatenate([reduced, np.zeros_like(reduced)], axis=1)
    stacked = np.concatenate([rows, right[:, :, None]], axis=2)
    factored: Array = np.linalg.qr(stacked, mode="r")  # type: ignore[assignment]
    solved = np.linalg.solve(factored[:, :count, :count], factored[:, :count, count:])[:, :, 0]
    return np.asarray(solved * positive, dtype=np.float64)
