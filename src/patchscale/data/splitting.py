"""Dividing images into splits: by class in proportion, and by seed alone."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchscale.data.seeding import derive_seed
from patchscale.errors import UserError

Indices = NDArray[np.int64]


def stratified_order(labels: ArrayLike, *parts: int | str) -> Indices:
    """A random order of all items in which every leading part holds the classes in proportion.

    Shorter leading parts are contained in longer ones. The order depends on `parts` (a seed and a purpose) alone.
    """
    labels = np.asarray(labels)
    shuffled = np.random.default_rng(derive_seed(*parts)).permutation(len(labels))
    place = np.empty(len(labels))
    for members in _by_class(labels[shuffled]):
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def hold_out(labels: ArrayLike, fraction: float, *parts: int | str) -> tuple[Indices, Indices]:
    """Divide items into those kept and the share `fraction` held out (at least one), by class; both sorted.

    A class with too few items for that share may be missing from the part held out.
    """
    order = stratified_order(labels, *parts)
    count = max(1, round(fraction * len(order)))
    return np.sort(order[count:]), np.sort(order[:count])


def limit(indices: Indices, labels: ArrayLike, wanted: int | None, *parts: int | str, what: str) -> Indices:
    """The first `wanted` of `indices` in a stratified order, sorted; all of them if `wanted` is None.

    Raises `UserError` naming the field `what` if there are not so many.
    """
    if wanted is None:
        return indices
    if wanted > len(indices):
        raise UserError(f"{what}={wanted}, but the split has {len(indices)} images; lower it or leave it out")
    order = stratified_order(np.asarray(labels)[indices], *parts)
    return np.sort(indices[order[:wanted]])


def class_counts(labels: Iterable[int], class_names: Sequence[str]) -> dict[str, int]:
    """Number of items by class name, in the order of the classes."""
    counts = np.bincount(np.fromiter(labels, np.int64), minlength=len(class_names))
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}


def fingerprint(parts: Mapping[str, Iterable[str]]) -> str:
    """sha256 of named lists of lines: which items are in which split."""
    digest = hashlib.sha256()
    for name, lines in parts.items():
        for line in lines:
            digest.update(f"{name}\t{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _by_class(labels: NDArray[np.int64]) -> list[Indices]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []
