"""Laws and designs of `coverage.py`: what is simulated, where it is predicted, and what is decided."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscale.laws.forms import law_named

Array = NDArray[np.float64]
Value = Callable[[pd.DataFrame], Array]
"""The law at the rows of a table: [draws, rows]."""

FOUNDING = [(97.3e6, "base", 64)] + [
    (N, model, r)
    for r, N, model in (
        *((128, N, model) for N, model in ((11.2e6, "tiny"), (43.6e6, "small"), (97.3e6, "base"), (344.3e6, "large"))),
        *((224, N, model) for N, model in ((11.2e6, "tiny"), (43.6e6, "small"), (97.3e6, "base"))),
    )
]
"""The eight complete curves of Adventurer in Table 1 and 4 of arXiv 2502.03738."""


@dataclass(frozen=True)
class Simulated:
    """A true law, the runs that measure it, and the questions asked of the fit."""

    name: str
    form: str
    truth: Mapping[str, float]
    """Parameters in stated units."""
    runs: pd.DataFrame
    """The axes, and columns that tell curves apart."""
    noise: float
    """Relative standard deviation of a run."""
    inside: Mapping[str, object]
    """A place among the runs."""
    outside: Mapping[str, object]
    """A place that one would extrapolate to."""
    decision: str
    """The decision in words."""
    decide: Callable[[Value], Array]
    """The decision by every draw: [draws]."""
    curve_noise: float = 0.0
    """Relative standard deviation that all runs of a curve share."""
    group: str | None = None
    """Column of groups with amplitudes of their own, which `truth` has as `E[name]`."""

    def value(self, table: pd.DataFrame) -> Array:
        """The true law at the rows of a table: [1, rows]."""
        law = law_named(self.form)
        axes = law.derive({axis.column: table[axis.column].to_numpy(float) for axis in law.axes})
        exponents = np.array([[self.truth[e.name] for e in law.exponents]])
        names = table[self.group] if self.group else [""] * len(table)
        amplitudes = np.array(
            [[self.truth.get(f"{one}[{name}]", self.truth.get(one, 0.0)) for one in law.amplitudes] for name in names]
        )
        return (law.basis(exponents, axes)[0] * amplitudes).sum(axis=1)[None]

    def draw(self, number: int) -> pd.DataFrame:
        """The runs of simulation `number`, with their test loss."""
        rng = np.random.default_rng([number, *self.name.encode()])
        moved = self.noise * rng.normal(size=len(self.runs))
        if self.curve_noise:
            columns = [name for name in (self.group, "model", "img_size") if name]
            curves = self.runs.groupby(columns, sort=False).ngroup().to_numpy()
            moved = moved + self.curve_noise * rng.normal(size=curves.max() + 1)[curves]
        return self.runs.assign(test_loss=self.value(self.runs).reshape(-1) * np.exp(moved))


def gain(column: str, large: float, small: float) -> Callable[[Value], Array]:
    """By how much the law falls from one place to another; everything else is as in the table's only row."""

    def decide(value: Value) -> Array:
        both = value(pd.DataFrame({column: [large, small]}))
        return both[:, 0] - both[:, 1]

    return decide


def gain_between(first: Mapping[str, object], second: Mapping[str, object]) -> Callable[[Value], Array]:
    """By how much the second configuration is better than the first."""

    def decide(value: Value) -> Array:
        both = value(pd.DataFrame([first, second]))
        return both[:, 0] - both[:, 1]

    return decide


def best(candidates: pd.DataFrame, column: str) -> Callable[[Value], Array]:
    """The value of a column at which the law is lowest among candidates of equal cost."""
    places = candidates[column].to_numpy(float)

    def decide(value: Value) -> Array:
        return places[np.argmin(value(candidates), axis=1)]

    return decide


def grid(**levels: object) -> pd.DataFrame:
    """All combinations."""
    return pd.DataFrame(list(product(*levels.values())), columns=list(levels))


def founding_runs() -> pd.DataFrame:
    """The forty runs: eight curves of five patch sizes."""
    rows = [
        {"model": model, "img_size": r, "patch_size": p, "params_backbone": N}
        for N, model, r in FOUNDING
        for p in (16, 8, 4, 2, 1)
    ]
    return pd.DataFrame(rows)


def equal_cost_vits(cost: float, img_size: float) -> pd.DataFrame:
    """Model sizes from 1 M to 3 G parameters, patches so small that parameters x tokens is `cost`."""
    N = np.geomspace(1e6, 3e9, 2001)
    return pd.DataFrame({"params_backbone": N, "img_size": img_size, "patch_size": img_size / np.sqrt(cost / N)})


@cache
def designs() -> list[Simulated]:
    """Every design; those with a profile in two exponents take ten times as long and come last."""
    found = []
    halved = "what one halves the smallest patch for: law(1) - law(0.5)"
    for noise in (0.003, 0.01, 0.02):
        found.append(
            Simulated(
                f"patch-5-noise-{noise:g}",
                "patch",
                {"E": 0.186, "A": 0.0017, "alpha": 1.6},
                pd.DataFrame({"patch_size": (16.0, 8.0, 4.0, 2.0, 1.0)}),
                noise,
                {"patch_size": 3.0},
                {"patch_size": 0.5},
                halved,
                gain("patch_size", 1.0, 0.5),
            )
        )
    N, cost = np.geomspace(1e7, 1e10, 2001), 6 * 200e6 * 2e9
    found.append(
        Simulated(
            "additive-N-D-60",
            "additive:params_backbone,images_seen",
            {"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28},
            grid(params_backbone=np.geomspace(3e7, 3e9, 6), images_seen=np.geomspace(3e8, 3e10, 10)),
            0.003,
            {"params_backbone": 2e8, "images_seen": 2e9},
            {"params_backbone": 1e10, "images_seen": 1e11},
            "the best N where N x S is 200 M x 2 G",
            best(pd.DataFrame({"params_backbone": N, "images_seen": cost / (6 * N)}), "params_backbone"),
        )
    )
    joint = {"E": 0.08, "A": 450.0, "B": 300.0, "a": 1.6, "h": 0.33, "b": 0.5}
    middle = {"patch_size": 6.0, "img_size": 160.0, "params_backbone": 60e6}
    beyond = {"patch_size": 0.5, "img_size": 224.0, "params_backbone": 344e6}
    decision = "the best N where N x T is that of 86 M at 16 px, 224 px"
    choose = best(equal_cost_vits(86e6 * 196, 224.0), "params_backbone")
    sweep = pd.DataFrame(
        [
            {"model": model, "img_size": r, "patch_size": p, "params_backbone": size}
            for (model, size), r in product(
                {"tiny": 5e6, "small": 22e6, "base": 86e6, "large": 304e6}.items(), (64, 128, 224)
            )
            for p in (16, 8, 4, 2)
        ]
    )
    forms = {
        "relative-patch": joint | {"E": 0.04, "C": 0.6, "c": 0.5},
        "relative-patch:C=0": joint,
        "relative-patch:h=0": {"E": 0.04, "A": 2.0, "B": 300.0, "C": 0.6, "a": 1.6, "b": 0.5, "c": 0.5},
        "relative-patch:h=0,C=0": {"E": 0.08, "A": 2.0, "B": 300.0, "a": 1.6, "b": 0.5},
        "additive": {"E": 0.04, "A": 0.004, "B": 300.0, "C": 0.6, "a": 1.1, "b": 0.5, "c": 0.5},
    }
    for form, truth in forms.items():
        for curve_noise in (0.0, 0.01):
            found.append(
                Simulated(
                    f"{form.replace(':', '-')}-40" + ("-curves-differ" if curve_noise else ""),
                    form,
                    truth,
                    founding_runs(),
                    0.01,
                    middle,
                    beyond,
                    decision,
                    choose,
                    curve_noise,
                )
            )
    found.append(
        Simulated(
            "relative-patch-C=0-48",
            "relative-patch:C=0",
            joint,
            sweep,
            0.01,
            middle,
            {**beyond, "patch_size": 1.0},
            decision,
            choose,
            0.005,
        )
    )
    families = pd.concat([sweep[sweep["img_size"] > 64].assign(family=name) for name in ("vit", "adventurer")])
    own = {"E[vit]": 0.1, "E[adventurer]": 0.08, "B[vit]": 300.0, "B[adventurer]": 200.0}
    found.append(
        Simulated(
            "two-families-64",
            "relative-patch:C=0",
            {name: value for name, value in joint.items() if name not in ("E", "B")} | own,
            families,
            0.01,
            middle | {"family": "vit"},
            beyond | {"family": "adventurer"},
            "the gain of adventurer over vit at 86 M, 8 px, 224 px",
            gain_between(
                {"family": "vit", "patch_size": 8, "img_size": 224, "params_backbone": 86e6},
                {"family": "adventurer", "patch_size": 8, "img_size": 224, "params_backbone": 86e6},
            ),
            0.005,
            "family",
        )
    )
    found.append(
        Simulated(
            "product-48",
            "product",
            {"E": 0.1, "A": 30.0, "a": 0.6, "b": 0.25, "c": 0.3},
            sweep,
            0.01,
            middle,
            {**beyond, "patch_size": 1.0},
            "the gain of 304 M at 16 px over 86 M at 8 px (224 px)",
            gain_between(
                {"patch_size": 8, "img_size": 224, "params_backbone": 86e6},
                {"patch_size": 16, "img_size": 224, "params_backbone": 304e6},
            ),
        )
    )
    T = np.geomspace(4, 1e5, 2001)
    found.append(
        Simulated(
            "tokens-25",
            "tokens",
            {"E": 0.1, "A": 1.0, "B": 300.0, "a": 0.6, "b": 0.5},
            grid(tokens=(49.0, 196.0, 784.0, 3136.0, 12544.0), params_backbone=np.geomspace(5e6, 6e8, 5)),
            0.01,
            {"tokens": 400.0, "params_backbone": 60e6},
            {"tokens": 50176.0, "params_backbone": 1e9},
            decision,
            best(pd.DataFrame({"tokens": T, "params_backbone": 86e6 * 196 / T}), "params_backbone"),
        )
    )
    V = np.geomspace(0.1, 1e5, 2001)
    equal = pd.DataFrame({"visual_tokens": V, "llm_params": 4e9 * (50 + 64) / (50 + V)})
    vlm = {"llm_params": 2.5e9, "visual_tokens": 24.0}
    larger = {"llm_params": 14e9, "visual_tokens": 1024.0}
    grid_vlm = grid(llm_params=(0.5e9, 1.8e9, 4e9, 7e9), visual_tokens=(1.0, 4.0, 16.0, 36.0, 64.0, 144.0, 576.0))
    words = "the best V where N (50 + V) is that of 4 G with 64"
    for name, form, truth in (
        ("vlm-28", "vlm", {"D": 0.3, "A": 60.0, "alpha": 0.3, "beta": 0.1}),
        ("vlm-28-flat", "vlm", {"D": 0.2, "A": 5.6, "alpha": 0.126, "beta": 0.0187}),
        ("vlm-additive-28", "vlm-additive", {"D": 0.2, "A": 60.0, "B": 0.2, "alpha": 0.3, "beta": 0.3}),
    ):
        found.append(Simulated(name, form, truth, grid_vlm, 0.005, vlm, larger, words, best(equal, "visual_tokens")))
    found.append(
        Simulated(
            "skaling-60",
            "skaling",
            {"E": 1.7, "A": 400.0, "alpha": 0.6, "beta": 0.45, "R": 20.0, "k": 0.6},
            grid(params_backbone=np.geomspace(3e7, 3e9, 6), images_seen=np.geomspace(3e8, 3e10, 10)),
            0.003,
            {"params_backbone": 2e8, "images_seen": 2e9},
            {"params_backbone": 1e10, "images_seen": 1e11},
            "the gain of 400 M with 1 G images over 200 M with 2 G",
            gain_between(
                {"params_backbone": 2e8, "images_seen": 2e9},
                {"params_backbone": 4e8, "images_seen": 1e9},
            ),
        )
    )
    found.append(
        Simulated(
            "bnsl-16",
            "bnsl",
            {"E": 0.3, "B": 60.0, "c0": 0.3, "c1": 0.5, "d": 3e8, "f": 0.3},
            pd.DataFrame({"images_seen": np.geomspace(1e6, 1e11, 16)}),
            0.003,
            {"images_seen": 2e8},
            {"images_seen": 1e12},
            "what ten times the images bring: law(1e10) - law(1e11)",
            gain("images_seen", 1e10, 1e11),
        )
    )
    found.append(
        Simulated(
            "shifted-8",
            "shifted",
            {"E": 0.2, "A": 0.004, "a": 1.5, "p0": 2.0},
            pd.DataFrame({"patch_size": (32.0, 24.0, 16.0, 12.0, 8.0, 4.0, 2.0, 1.0)}),
            0.003,
            {"patch_size": 6.0},
            {"patch_size": 0.5},
            halved,
            gain("patch_size", 1.0, 0.5),
        )
    )
    small = {"E": 0.08, "A": 0.004, "B": 300.0, "a": 1.1, "b": 0.5}
    found.append(
        Simulated(
            "additive-patch-size-12",
            "additive:patch_size,params_backbone",
            small,
            grid(patch_size=(16.0, 8.0, 4.0, 2.0), params_backbone=(22e6, 86e6, 304e6)),
            0.01,
            {"patch_size": 6.0, "params_backbone": 50e6},
            {"patch_size": 1.0, "params_backbone": 600e6},
            "the best N where N / p^2 is that of 86 M at 8 px",
            best(
                pd.DataFrame(
                    {
                        "params_backbone": np.geomspace(1e6, 3e9, 2001),
                        "patch_size": 8 * np.sqrt(np.geomspace(1e6, 3e9, 2001) / 86e6),
                    }
                ),
                "params_backbone",
            ),
        )
    )
    return found
