"""Every form gets its own parameters back from noise-free values; bounds, factors and groups included."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import special

from patchscale import fit_law
from patchscale.laws.forms import LAWS, law_named

N = np.geomspace(5e6, 6e8, 5)
GRIDS = {
    "patch_size": (1, 2, 4, 8, 16),
    "img_size": (64, 128, 224, 384),
    "params_backbone": N,
    "llm_params": np.geomspace(5e8, 7e10, 5),
    "visual_tokens": (1, 4, 16, 64, 256),
    "tokens": (16, 64, 196, 784, 3136),
    "images_seen": np.geomspace(1e7, 1e10, 6),
}
# parameters in stated units, so that every term weighs at the middle of the grid
PLANTED = {
    "relative-patch": {"E": 0.08, "A": 450.0, "B": 300.0, "C": 0.4, "a": 1.6, "h": 0.33, "b": 0.5, "c": 0.4},
    "relative-patch:h=0": {"E": 0.08, "A": 3.0, "B": 300.0, "C": 0.4, "a": 1.6, "b": 0.5, "c": 0.4},
    "relative-patch:C=0": {"E": 0.08, "A": 450.0, "B": 300.0, "a": 1.6, "h": 0.33, "b": 0.5},
    "relative-patch:h=0,C=0": {"E": 0.08, "A": 3.0, "B": 300.0, "a": 1.6, "b": 0.5},
    "relative-patch:native=300": {"E": 0.08, "A": 450.0, "B": 300.0, "C": 0.4, "a": 1.6, "h": 0.33, "b": 0.5, "c": 0.6},
    "additive": {"E": 0.08, "A": 0.004, "B": 300.0, "C": 0.4, "a": 1.1, "b": 0.5, "c": 0.4},
    "additive:params_backbone,images_seen": {"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28},
    "product": {"E": 0.1, "A": 30.0, "a": 0.6, "b": 0.25, "c": 0.3},
    "tokens": {"E": 0.1, "A": 1.0, "B": 300.0, "a": 0.6, "b": 0.5},
    "vlm": {"D": 0.1, "A": 10.0, "alpha": 0.2, "beta": 0.1},
    "vlm-additive": {"D": 0.1, "A": 10.0, "B": 0.2, "alpha": 0.2, "beta": 0.3},
    "vlm:encoder": {"D": 0.1, "A": 10.0, "C": 2.0, "alpha": 0.2, "beta": 0.1, "a": 1.1},
    "vlm-additive:encoder": {"D": 0.1, "A": 10.0, "B": 0.2, "C": 2.0, "alpha": 0.2, "beta": 0.3, "a": 1.1},
    "shifted": {"E": 0.2, "A": 0.01, "a": 1.3, "p0": 2.0},
    "skaling": {"E": 1.7, "A": 400.0, "alpha": 0.6, "beta": 0.45, "R": 20.0, "k": 0.6},
    "bnsl": {"E": 0.3, "B": 60.0, "c0": 0.3, "c1": 0.5, "d": 3e8, "f": 0.3},
}


def grid(law):
    """All combinations of the axes of a law, with more sizes where it needs them."""
    columns = [axis.column for axis in law.axes]
    levels = [
        np.geomspace(*((1, 32) if c == "patch_size" else (1e7, 1e10)), 12) if len(columns) == 1 else GRIDS[c]
        for c in columns
    ]
    return pd.DataFrame(list(product(*levels)), columns=columns).astype(float)


def values(law, table, parameters):
    """The law in stated units."""
    axes = law.derive({name: table[name].to_numpy(float) for name in table.columns})
    exponents = np.array([[parameters[e.name] for e in law.exponents]])
    return law.basis(exponents, axes)[0] @ np.array([parameters[name] for name in law.amplitudes])


@pytest.mark.parametrize("form", PLANTED)
def test_a_noise_free_law_is_recovered_to_a_thousandth(form):
    law, planted = law_named(form), PLANTED[form]
    table = grid(law)
    table["test_loss"] = values(law, table, planted)
    fit = fit_law(table, form=form, draws=40)
    found = {name: estimate.value for name, estimate in fit.parameters.items()}
    assert found == pytest.approx(planted, rel=1e-3)
    assert fit.predict(table)["predicted"].to_numpy() == pytest.approx(table["test_loss"].to_numpy(), rel=1e-6)


def test_every_joint_form_is_recovered_above():
    assert {form for form in LAWS if form != "patch"} <= set(PLANTED)


def test_groups_have_floors_of_their_own_and_share_exponents():
    law = law_named("relative-patch:C=0")
    parts = []
    for name, E, B in (("plain", 0.10, 200.0), ("distilled", 0.07, 120.0)):
        table = grid(law)
        table["test_loss"] = values(law, table, PLANTED["relative-patch:C=0"] | {"E": E, "B": B})
        parts.append(table.assign(recipe=name))
    table = pd.concat(parts, ignore_index=True)
    fit = fit_law(table, form="relative-patch:C=0", groups=["recipe"], draws=40)
    found = {name: estimate.value for name, estimate in fit.parameters.items()}
    expected = {"E[plain]": 0.10, "E[distilled]": 0.07, "B[plain]": 200.0, "B[distilled]": 120.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["a"] == pytest.approx(1.6, rel=1e-3)
    assert set(found) == {*expected, "A", "a", "h", "b"}
    point = table.head(1).drop(columns="recipe")
    both = fit.predict(pd.concat([point.assign(recipe="plain"), point.assign(recipe="distilled")]))
    assert both["predicted"].iloc[0] > both["predicted"].iloc[1]


@pytest.mark.parametrize(("factor", "name", "planted"), [("kd", "x[kd=yes]", 0.92), ("+kd", "+[kd=yes]", -0.02)])
def test_a_factor_multiplies_or_is_added(factor, name, planted):
    law = law_named("relative-patch:C=0")
    table = grid(law)
    table["kd"] = np.where(np.arange(len(table)) % 3 == 0, "yes", "no")
    clean = values(law, table.drop(columns="kd"), PLANTED["relative-patch:C=0"])
    yes = table["kd"] == "yes"
    table["test_loss"] = np.where(yes, clean + planted if factor.startswith("+") else clean * planted, clean)
    fit = fit_law(table, form="relative-patch:C=0", factors=[factor], draws=40)
    assert fit.parameters[name].value == pytest.approx(planted, rel=1e-3)
    assert fit.parameters["h"].value == pytest.approx(0.33, rel=1e-3)


def test_on_the_logit_scale_the_law_describes_the_logit_and_its_floor_may_be_negative():
    law = law_named("relative-patch:C=0")
    table = grid(law)
    planted = PLANTED["relative-patch:C=0"] | {"E": -2.0}
    table["metric"] = 1 - 1 / (1 + np.exp(-values(law, table, planted)))
    fit = fit_law(table, form="relative-patch:C=0", target="logit-error", draws=40)
    found = {name: estimate.value for name, estimate in fit.parameters.items()}
    assert found == pytest.approx(planted, rel=1e-3)
    predicted = fit.predict(table)
    assert predicted["predicted"].to_numpy() == pytest.approx(1 - table["metric"].to_numpy(), rel=1e-6)
    assert predicted["predicted"].between(0, 1).all()


def test_hoffmanns_law_on_eight_budgets_of_sixteen_points(planted):
    problem = planted.chinchilla()
    table = pd.DataFrame({"params_backbone": problem.axes["N"], "images_seen": problem.axes["D"]})
    table["test_loss"] = problem.measured
    assert len(table) == 128
    fit = fit_law(table, form="additive:params_backbone,images_seen", draws=40)
    assert fit.parameters["a"].value == pytest.approx(0.34, abs=1e-3)
    assert fit.parameters["b"].value == pytest.approx(0.28, abs=1e-3)
    found = [fit.parameters[name].value for name in "EAB"]
    assert found == pytest.approx([1.69, 406.4, 410.7], rel=1e-3)


def test_hubers_loss_shrugs_off_a_few_wild_rows(planted):
    problem = planted.chinchilla()
    table = pd.DataFrame({"params_backbone": problem.axes["N"], "images_seen": problem.axes["D"]})
    table["test_loss"] = problem.measured * np.exp(2e-4 * np.random.default_rng(0).normal(size=128))
    table.loc[[5, 40, 90], "test_loss"] *= 1.2
    form = "additive:params_backbone,images_seen"
    squares, huber = (fit_law(table, form=form, huber=delta, draws=40) for delta in (None, 1e-3))
    miss = [abs(fit.parameters["a"].value - 0.34) for fit in (squares, huber)]
    assert miss[1] < 0.01
    assert miss[1] < miss[0] / 5

    residuals = np.log(huber.points()["fitted"] / huber.points()["measured"])
    assert huber.objective == pytest.approx(2 * special.huber(1e-3, residuals).sum())
    assert huber.objective < 0.1 * (residuals**2).sum()
    assert np.isfinite(squares.aicc)
    assert np.isnan(huber.aicc)
    assert huber.to_dict()["aicc"] is None
    assert huber.conventions["aicc"].startswith("none: ")
