"""One law over several families or recipes: some amplitudes are each group's own, everything else is shared.

A group has its own floor (and, in the joint laws, its own model-size term) and shares the exponents. A factor is a
difference of another kind, such as distillation: one number that multiplies the whole law, or is added to it.

On the axes, `group` holds the number of each point's group; `factor:NAME=VALUE` is 1 where the factor has that value.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from patchscale.laws.forms import Array, Axes, Exponent, Law

GROUP = "group"


class Grouped(Law):
    """`base` with own amplitudes per group and a multiplier or addition per factor level.

    `groups` are labels; `own` maps an amplitude to the groups that have one of their own (the others share one).
    """

    def __init__(
        self,
        base: Law,
        *,
        groups: Sequence[str] = (),
        own: Mapping[str, Sequence[str]] | None = None,
        multipliers: Sequence[str] = (),
        additions: Sequence[str] = (),
    ) -> None:
        self.base, self.groups = base, tuple(groups)
        self.multipliers, self.additions = tuple(multipliers), tuple(additions)
        own = own or {}
        self.name, self.source, self.axes, self.floor = base.name, base.source, base.axes, base.floor
        self.own = base.own
        names: list[str] = []
        self._term: list[int] = []
        # which groups each column serves: [k, groups]
        serves: list[list[bool]] = []
        for index, amplitude in enumerate(base.amplitudes):
            apart = [group in own.get(amplitude, ()) for group in self.groups]
            if not all(apart) or not self.groups:
                names.append(amplitude)
                self._term.append(index)
                serves.append([not alone for alone in apart])
            for i, group in enumerate(self.groups):
                if apart[i]:
                    names.append(f"{amplitude}[{group}]")
                    self._term.append(index)
                    serves.append([j == i for j in range(len(self.groups))])
        self._serves = np.array(serves, float).reshape(len(names), len(self.groups))
        self.amplitudes = (*names, *(f"+[{factor}]" for factor in self.additions))
        self.free = (
            *(name for name in names if name.split("[")[0] in base.free),
            *(f"+[{factor}]" for factor in self.additions),
        )
        self.exponents = (*base.exponents, *(Exponent(f"x[{factor}]", 0.2, 5.0) for factor in self.multipliers))
        changes = "".join([*(f" * x[{f}]" for f in self.multipliers), *(f" + [{f}]" for f in self.additions)])
        self.formula = base.formula if not changes else f"{base.formula.replace('y = ', 'y = (')}){changes}"
        phrases = {name: base.meanings.get(name.split("[")[0], "") for name in self.parameters}
        phrases |= {f"x[{f}]": f"what the law is multiplied by where {f}" for f in self.multipliers}
        phrases |= {f"+[{f}]": f"what is added to the law where {f}" for f in self.additions}
        self.meanings: Mapping[str, str] = phrases

    def derive(self, axes: Axes) -> Axes:
        """As the base."""
        return self.base.derive(axes)

    def _mask(self, axes: Axes) -> Array:
        """Which columns of the base serve which points: [n, columns]."""
        if not self.groups:
            return np.ones((1, len(self._term)))
        return self._serves.T[axes[GROUP].astype(int)]

    def _split(self, exponents: Array) -> tuple[Array, Array]:
        count = len(self.base.exponents)
        return exponents[:, :count], exponents[:, count:]

    def _factor(self, multipliers: Array, axes: Axes) -> Array:
        """The product of the multipliers at each point: [G, n, 1] (1 where there are none)."""
        if not self.multipliers:
            return np.ones((len(multipliers), 1, 1))
        flags = np.stack([axes[f"factor:{name}"] for name in self.multipliers], axis=1)
        return np.exp(np.log(multipliers) @ flags.T)[:, :, None]

    def _additions(self, axes: Axes) -> Array:
        """Indicator columns of the added factors, [n, count]."""
        return np.stack([axes[f"factor:{name}"] for name in self.additions], axis=1)

    def basis(self, exponents: Array, axes: Axes) -> Array:
        """The base's columns, each for the groups it serves, times the factors; then one column per addition."""
        inner, multipliers = self._split(exponents)
        columns = self.base.basis(inner, axes)[:, :, self._term] * self._mask(axes) * self._factor(multipliers, axes)
        if self.additions:
            added = np.broadcast_to(self._additions(axes), (*columns.shape[:2], len(self.additions)))
            columns = np.concatenate([columns, added], axis=2)
        return columns

    def basis_gradient(self, exponents: Array, axes: Axes) -> Array:
        """Of the base's exponents, then of the multipliers."""
        inner, multipliers = self._split(exponents)
        factor = self._factor(multipliers, axes)
        gradient = self.base.basis_gradient(inner, axes)[:, :, self._term, :] * self._mask(axes)[:, :, None]
        parts = [gradient * factor[..., None]]
        if self.multipliers:
            columns = self.base.basis(inner, axes)[:, :, self._term] * self._mask(axes) * factor
            for i, name in enumerate(self.multipliers):
                flag = axes[f"factor:{name}"][:, None] / multipliers[:, i, None, None]
                parts.append((columns * flag)[..., None])
        found = np.concatenate(parts, axis=3)
        if self.additions:
            found = np.pad(found, ((0, 0), (0, 0), (0, len(self.additions)), (0, 0)))
        return found

    def slope(self, exponents: Array, amplitudes: Array, axes: Axes) -> Array:
        """As in `Law`; each point meets the amplitudes of its own group only."""
        inner, multipliers = self._split(exponents)
        count = len(self._term)
        chosen = amplitudes[:, None, :count] if amplitudes.ndim == 2 else amplitudes[..., :count]
        chosen = chosen * self._mask(axes)
        gather = np.zeros((count, len(self.base.amplitudes)))
        gather[np.arange(count), self._term] = 1.0
        # [G, n, k of the base]
        local = np.broadcast_to(chosen @ gather, (len(exponents), len(next(iter(axes.values()))), gather.shape[1]))
        factor = self._factor(multipliers, axes)
        parts = [self.base.slope(inner, local, axes) * factor]
        if self.multipliers:
            values = (self.base.basis(inner, axes) * local).sum(axis=2) * factor[..., 0]
            for i, name in enumerate(self.multipliers):
                parts.append((values * axes[f"factor:{name}"] / multipliers[:, i, None])[..., None])
        return np.concatenate(parts, axis=2)

    def stated(self, exponents: Array, amplitudes: Array, scales: Mapping[str, float]) -> tuple[Array, Array]:
        """Each amplitude is worth what that of the base is."""
        inner, multipliers = self._split(exponents)
        inner, worth = self.base.stated(inner, np.ones((len(inner), len(self.base.amplitudes))), scales)
        count = len(self._term)
        stated = np.concatenate([amplitudes[:, :count] * worth[:, self._term], amplitudes[:, count:]], axis=1)
        return np.concatenate([inner, multipliers], axis=1), stated
