"""Proposed runs against what really happens: the law refitted to simulated data with each candidate added."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from patchscale import UserError, fit_law
from patchscale.laws.descent import descend
from patchscale.laws.next_runs import propose_runs

NOISE = 0.004
FORM = "additive:patch_size,params_backbone"
SIMULATED = 400


def law(table):
    return 0.3 + 0.01 * table["patch_size"] ** 1.2 + 0.25 * (table["params_backbone"] / 1e7) ** -0.6


def measured(places, rng):
    table = pd.DataFrame(places, columns=["patch_size", "params_backbone"]).astype(float)
    return table.assign(test_loss=law(table) * np.exp(NOISE * rng.normal(size=len(table))))


BASE = [(p, N) for p in (32, 24, 16, 12) for N in (5e6, 2e7, 8e7)]
CANDIDATES = pd.DataFrame(
    [(2, 5e6), (4, 8e7), (8, 2e7), (16, 2e7), (32, 5e6), (32, 3e8), (12, 3e8)],
    columns=["patch_size", "params_backbone"],
)
DECISIONS = {
    "prediction": {"patch_size": 2.0, "params_backbone": 3e8},
    "difference": pd.DataFrame({"patch_size": [4.0, 16.0], "params_backbone": [8e7, 3e8]}),
    "parameter": "a",
}


@pytest.fixture(scope="module")
def fit():
    return fit_law(measured(BASE * 2, np.random.default_rng(3)), form=FORM, draws=1000)


def spread_after(fit, added, decision):
    """Standard deviation of the decision over refits of simulated data with `added` rows: brute force."""
    rows = pd.concat([fit.rows, added])[["patch_size", "params_backbone"]]
    truth = law(rows).to_numpy()
    rng = np.random.default_rng(11)
    values = truth * np.exp(NOISE * rng.normal(size=(SIMULATED, len(rows))))
    problem = replace(fit.problem, axes=fit.design.axes(rows), measured=truth, sigma=np.ones(len(rows)))
    start = np.tile(np.log(np.array([1.2, 0.6])), (SIMULATED, 1))
    found = descend(problem, start, measured=values, rel=1e-8)
    if isinstance(decision, str):
        names = [one.name for one in problem.law.exponents]
        return float(found.places[:, names.index(decision)].std())
    points = decision if isinstance(decision, pd.DataFrame) else pd.DataFrame([decision])
    basis = problem.law.basis(np.exp(found.places), fit.design.axes(points))
    predicted = np.einsum("gnk,gk->gn", basis, found.at.amplitudes)
    return float((predicted[:, 0] - predicted[:, -1]).std() if len(points) > 1 else predicted[:, 0].std())


@pytest.mark.parametrize("method", ["linear", "draws"])
@pytest.mark.parametrize("kind", list(DECISIONS))
def test_the_first_choice_is_that_of_brute_force(fit, kind, method):
    decision = DECISIONS[kind]
    before = spread_after(fit, CANDIDATES.head(0), decision)
    after = [spread_after(fit, CANDIDATES.iloc[[i]], decision) for i in range(len(CANDIDATES))]
    assert min(after) < 0.9 * before, "some candidate must matter for this test to mean anything"
    proposal = propose_runs(fit, CANDIDATES.assign(price=1.0), decision=decision, method=method, runs=1)
    first = proposal.runs.iloc[0]
    ranked = proposal.ranking.merge(CANDIDATES.assign(really=after), on=["patch_size", "params_backbone"])
    # two candidates are equally good for the difference
    assert ranked["really"].iloc[0] < 1.05 * min(after)
    assert spearmanr(ranked["width_after"], ranked["really"]).statistic > 0.8
    shrinks = float(first["width_after"] / first["width_before"])
    assert shrinks == pytest.approx(min(after) / before, abs=0.15)


def test_three_greedy_runs_really_narrow_the_interval_as_promised(fit):
    decision = DECISIONS["prediction"]
    proposal = propose_runs(fit, CANDIDATES.assign(price=1.0), decision=decision, runs=3)
    before = spread_after(fit, CANDIDATES.head(0), decision)
    chosen = spread_after(fit, proposal.runs, decision)
    worst = spread_after(fit, proposal.ranking.tail(3), decision)
    assert chosen < worst < before * 1.05
    assert proposal.width_after / proposal.width == pytest.approx(chosen / before, abs=0.15)
    assert (proposal.runs["width_after"] < proposal.runs["width_before"]).all()
    assert proposal.runs["width_before"].tolist()[1:] == pytest.approx(proposal.runs["width_after"].tolist()[:-1])
    assert len(proposal.runs.drop_duplicates(["patch_size", "params_backbone"])) == 3


@pytest.mark.parametrize("method", ["linear", "draws"])
def test_a_design_near_a_line_gets_a_run_off_the_line(method):
    """Small patches were run with large models only; what settles the law elsewhere is a run that breaks this."""
    line = [(32, 5e6), (32, 8e6), (20, 1e7), (16, 2e7), (12, 4e7), (8, 8e7), (6, 1e8), (4, 1.6e8), (4, 8e7), (16, 4e7)]
    table = measured(line * 2, np.random.default_rng(5))
    rho = np.corrcoef(np.log(table["patch_size"]), np.log(table["params_backbone"]))[0, 1]
    assert -0.95 < rho < -0.9
    fit = fit_law(table, form=FORM, draws=400)
    assert fit.check("collinear").state == "warn"
    on = [(32, 5e6), (16, 2e7), (8, 8e7), (4, 1.6e8)]
    off = [(4, 5e6), (32, 1.6e8)]
    candidates = pd.DataFrame(on + off, columns=["patch_size", "params_backbone"]).assign(price=1.0)
    for place in ((6.0, 8e6), (24.0, 1e8), (6.0, 2e7)):
        decision = {"patch_size": place[0], "params_backbone": place[1]}
        ranking = propose_runs(fit, candidates, decision=decision, method=method).ranking
        after = [spread_after(fit, candidates.iloc[[i]], decision) for i in range(len(candidates))]
        ranked = ranking.merge(candidates.assign(really=after), on=["patch_size", "params_backbone"])
        found = list(zip(ranking["patch_size"], ranking["params_backbone"], strict=True))
        assert found[0] in off
        assert ranked["really"].iloc[0] < 0.9 * ranked["really"].iloc[2:].min()


def test_the_price_decides_between_runs_of_like_use(fit):
    decision = DECISIONS["prediction"]
    even = propose_runs(fit, CANDIDATES.assign(train_gpu_hours=1.0), decision=decision, runs=1).runs.iloc[0]
    dear = CANDIDATES.assign(train_gpu_hours=1.0)
    same = (dear["patch_size"] == even["patch_size"]) & (dear["params_backbone"] == even["params_backbone"])
    dear.loc[same, "train_gpu_hours"] = 1000.0
    other = propose_runs(fit, dear, decision=decision, runs=1)
    assert other.runs.iloc[0]["patch_size"] != even["patch_size"]
    assert other.runs.iloc[0]["train_gpu_hours"] == 1
    gain = (other.ranking["width_before"] - other.ranking["width_after"]) / other.ranking["train_gpu_hours"]
    assert other.ranking["narrowing_per_price"].to_numpy() == pytest.approx(gain.to_numpy())
    assert other.ranking["narrowing_per_price"].is_monotonic_decreasing


def test_the_best_of_several_configurations_is_a_decision_too(fit):
    options = pd.DataFrame({"patch_size": [4.0, 8.0, 16.0], "params_backbone": [2e7, 8e7, 3e8]})
    proposal = propose_runs(fit, CANDIDATES.assign(price=1.0), decision=options, runs=2)
    assert "which of 3 configurations is best" in str(proposal)
    assert proposal.width_after < proposal.width


def test_the_configurations_that_tie_in_a_plan_are_a_decision():
    import patchscale as ps

    table = ps.published("patchification/imagenet").query("architecture == 'adventurer'")
    fit = ps.fit_law(table, form="relative-patch", target="error", draws=200)
    space = ps.Space(
        models=["adventurer_small", "adventurer_base"], img_sizes=[128, 192, 224], patch_sizes=[16, 8, 4],
        images_seen=[1.28e8],
    )  # fmt: skip
    plan = ps.plan(fit, space, budgets={"train_gpu_hours": 300}, device="a100")
    assert len(plan.ties) > 1
    proposal = ps.propose_runs(fit, plan.candidates, decision=plan.ties, runs=2)
    assert proposal.price == "train_gpu_hours"
    assert proposal.width_after < 0.95 * proposal.width
    assert proposal.total_price == pytest.approx(proposal.runs["train_gpu_hours"].sum())


def test_groups_are_columns_of_candidates_and_decisions():
    rng = np.random.default_rng(2)
    table = pd.concat([measured(BASE, rng).assign(recipe=name) for name in ("short", "long")])
    grouped = fit_law(table, form=FORM, groups=["recipe"], draws=400)
    decision = {**DECISIONS["prediction"], "recipe": "long"}
    candidates = pd.DataFrame({"patch_size": 2.0, "params_backbone": 3e8, "recipe": ["long", "short"], "price": 1.0})
    first = propose_runs(grouped, candidates, decision=decision).runs.iloc[0]
    assert first["recipe"] == "long"
    with pytest.raises(UserError, match="the points have no column 'recipe'"):
        propose_runs(grouped, candidates.drop(columns="recipe"), decision="a")


def test_widths_of_draws_are_those_of_the_fit(fit):
    place = pd.DataFrame([DECISIONS["prediction"]])
    now = fit.predict(place)
    proposal = propose_runs(fit, CANDIDATES.assign(price=1.0), decision=place)
    assert proposal.width == pytest.approx(float((now["high"] - now["low"]).iloc[0]), rel=0.15)


def test_the_sentence_names_the_run_its_price_and_the_widths(fit):
    proposal = propose_runs(
        fit, CANDIDATES.assign(train_gpu_hours=2.0), decision=DECISIONS["difference"], runs=2, method="linear"
    )
    text = str(proposal)
    assert text.startswith("To settle the difference between patch_size 4, params_backbone 8e+07 and patch_size 16,")
    assert "for 2 GPU-hours the 95% interval should narrow from" in text
    assert "with the next one (4 GPU-hours together)" in text
    assert "Gauss-Newton" in text
    assert "outside the measured range" in text
    values = proposal.to_dict()
    assert values["sentence"] == text
    assert len(values["ranking"]) == len(CANDIDATES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": "alpha"}, "the law has no parameter 'alpha' (parameters: E, A, B, a, b)"),
        ({"candidates": CANDIDATES}, "the candidates have no price; add a column train_gpu_hours and train_flops"),
        ({"candidates": CANDIDATES.assign(price=0.0)}, "price must be a positive number"),
        ({"candidates": CANDIDATES.head(0)}, "there are no candidates"),
        ({"price": "hours"}, "the candidates have no column 'hours'"),
        ({"method": "magic"}, "use linear or draws"),
        ({"runs": 0}, "propose at least one"),
        ({"decision": {"patch_size": 4}}, "no column 'params_backbone'"),
    ],
)
def test_mistakes_are_one_line(fit, change, message):
    arguments = {"candidates": CANDIDATES.assign(price=1.0), "decision": "a"} | change
    with pytest.raises(UserError) as caught:
        propose_runs(fit, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
