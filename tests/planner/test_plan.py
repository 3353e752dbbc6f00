"""A plan with a law that was fitted: interval, ties, steps, extrapolation, words."""

import json

import numpy as np
import pandas as pd
import pytest

from patchscale import UserError
from patchscale.planner.plan import plan
from patchscale.planner.prices import price
from patchscale.planner.space import Space
from patchscale.planner.ties import compare
from patchscale.planner.vision_language import VisionLanguageSpace


@pytest.fixture(scope="module")
def priced():
    space = Space(
        models=["adventurer_*"],
        img_sizes=[64, 128, 160, 224],
        patch_sizes=[32, 16, 8, 4, 2],
        images_seen=[3e8],
    )
    return price(space, device="a100")


@pytest.fixture(scope="module")
def made(joint_fit, priced):
    return plan(joint_fit, priced, budgets={"train_gpu_hours": 300, "latency_s": 0.005})


def test_the_best_is_predicted_as_the_law_does(made, joint_fit, priced):
    row = pd.DataFrame([made.best])
    assert made.best["predicted"] == joint_fit.values(row)[0]
    assert made.best["low"] <= made.best["predicted"] <= made.best["high"]
    allowed = priced.query("train_gpu_hours <= 300 and latency_s <= 0.005")
    assert made.best["predicted"] == joint_fit.values(allowed).min()
    assert (made.configurations, made.feasible) == (len(priced), len(allowed))


def test_ties_are_those_of_paired_draws(made, joint_fit):
    draws = joint_fit.draws(made.candidates)
    difference = draws - draws[:, [0]]
    low, high = np.quantile(difference, [0.025, 0.975], axis=0, method="weibull")
    assert made.candidates["tied"].tolist() == ((low <= 0) & (high >= 0)).tolist()
    assert made.candidates["prob_best"].sum() == pytest.approx(1)
    assert made.candidates["prob_best"].tolist() == [
        pytest.approx((draws.argmin(axis=1) == i).mean()) for i in range(len(made.candidates))
    ]
    assert made.candidates["tied"].iloc[0]
    assert made.ties["train_gpu_hours"].is_monotonic_increasing
    assert made.alternatives["within_one_se"].all()
    assert set(made.alternatives.index) <= set(made.candidates.index)


def test_what_two_configurations_share_cancels():
    """Two differ by 0.01 exactly, under a common error ten times as large: not tied, though intervals overlap."""
    common = np.random.default_rng(0).normal(scale=0.1, size=2000)
    found = compare(np.stack([common, common + 0.01], axis=1), np.array([0, 0.01]), 0, level=0.95)
    assert found.tied.tolist() == [True, False]
    assert found.within_one_se.tolist() == [True, False]
    assert found.prob_best.tolist() == [1, 0]


def test_configurations_that_noise_alone_separates_are_tied():
    rng = np.random.default_rng(0)
    draws = rng.normal(loc=[0, 0.01, 1], scale=0.1, size=(4000, 3))
    found = compare(draws, np.array([0, 0.01, 1]), 0, level=0.95)
    assert found.tied.tolist() == [True, True, False]
    assert found.prob_best[:2] == pytest.approx([0.53, 0.47], abs=0.03)  # P(normal < 0.01 / (0.1 sqrt 2)) = 0.528


def test_steps_change_one_axis_and_cost_more(made):
    assert set(made.steps["axis"]) <= {"model", "img_size", "patch_size"}
    assert len(made.steps)
    for row in made.steps.to_dict("records"):
        for axis in {"model", "img_size", "patch_size"} - {row["axis"]}:
            assert row[axis] == made.best[axis]
        assert row[row["axis"]] != made.best[row["axis"]]
        assert row["price_ratio"] == pytest.approx(row["train_gpu_hours"] / made.best["train_gpu_hours"])
        assert row["price_ratio"] > 1
        assert row["gain_per_doubling"] == pytest.approx(row["gain"] / np.log2(row["price_ratio"]))
        assert row["gain"] == pytest.approx(made.best["predicted"] - row["predicted"])
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert ("train_gpu_hours" in row["exceeds"]) == (row["train_gpu_hours"] > 300)


def test_a_doubled_budget_is_what_planning_with_it_gives(made, joint_fit, priced):
    for row in made.doublings.to_dict("records"):
        again = plan(joint_fit, priced, budgets={**made.budgets, row["budget"]: 2 * made.budgets[row["budget"]]})
        assert row["predicted"] == again.best["predicted"]
        assert (row["gain"] > 0) == (again.best["predicted"] < made.best["predicted"])


def test_rows_outside_the_measured_range_say_on_which_axis(joint_fit, priced):
    made = plan(joint_fit, priced, budgets={"train_gpu_hours": 1e9})
    assert made.best["model"] == "adventurer_huge"
    assert made.best["extrapolated"]
    assert made.best["outside"] == "params_backbone"
    assert "This is an extrapolation (params_backbone)" in str(made)
    inside = plan(joint_fit, priced.query("model == 'adventurer_base'"), budgets={"train_gpu_hours": 1e9})
    assert not inside.best["extrapolated"]
    assert "extrapolation" not in str(inside)
    assert inside.binds == ()
    assert "No budget holds it back" in str(inside)


def test_ties_for_want_of_data_are_told_from_ties_on_known_ground():
    """b costs half and is as good; c is tied as well, but only because its own value could be anything."""

    class Law:
        target, level, quantity = "error", 0.95, "error"
        common = np.random.default_rng(0).normal(scale=0.02, size=500)
        own = np.random.default_rng(1).normal(size=(500, 3)) * [0, 0.001, 0.5]

        def draws(self, table):
            return table["value"].to_numpy() + self.common[:, None] + self.own[:, table["kind"].to_numpy()]

        def predict(self, table):
            low, high = np.quantile(self.draws(table), [0.025, 0.975], axis=0)
            return pd.DataFrame(
                {"predicted": table["value"], "low": low, "high": high, "extrapolated": False, "outside": ""}
            )

    table = pd.DataFrame(
        {"model": ["a", "b", "c"], "kind": [0, 1, 2], "value": [0.2, 0.2005, 0.9], "hours": [4.0, 2, 1]}
    )
    made = plan(Law(), table, budgets={"hours": 5})
    assert made.best["model"] == "a"
    assert made.ties["model"].tolist() == ["c", "b", "a"]
    assert made.ties["poorly_known"].tolist() == [True, False, False]
    assert "from 1 only because little is known" in str(made)
    assert "the cheapest of the rest inside the measured range takes 50% of its hours: b" in str(made)


def test_what_the_device_cannot_hold_is_said_unless_memory_is_a_budget(joint_fit):
    space = Space(models=["adventurer_huge"], img_sizes=[224], patch_sizes=[8], images_seen=[3e8])
    made = plan(joint_fit, space, budgets={"train_gpu_hours": 1e9}, device="a100", batch_size=1024)
    assert made.best["peak_memory_bytes"] > made.device_memory_bytes == 80e9
    assert "It does not fit: it takes" in str(made)
    assert "the device has 74.5 GiB" in str(made)
    small = plan(joint_fit, space, budgets={"train_gpu_hours": 1e9}, device="a100", batch_size=1)
    assert small.best["peak_memory_bytes"] < 80e9
    assert "does not fit" not in str(small)


def test_an_axis_the_law_knows_nothing_of_is_named(joint_fit):
    space = Space(models=["adventurer_base"], img_sizes=[224], patch_sizes=[16, 8], images_seen=[1e8, 3e8])
    made = plan(joint_fit, space, budgets={"train_gpu_hours": 1e6}, device="a100")
    assert made.blind == ("images_seen",)
    assert made.best["images_seen"] == 1e8
    assert "The law says nothing about images_seen" in str(made)


def test_the_plan_in_words_and_as_plain_values(made):
    text = str(made)
    assert "\n" not in text
    assert f"Of {made.configurations} configurations {made.feasible} keep the budgets" in text
    assert "of 300 GPU-hours of training" in text
    assert "nan" not in text
    told = json.loads(json.dumps(made.to_dict()))
    assert told["sentence"] == text
    assert told["best"]["model"] == made.best["model"]
    assert told["conventions"]["time"].startswith("A100: assumed MFU")
    assert made.frame() is made.candidates


def test_a_plain_function_has_no_interval_and_ties_only_equals():
    table = pd.DataFrame({"model": ["a", "b", "c"], "hours": [1.0, 2.0, 3.0], "value": [0.2, 0.1, 0.1]})
    made = plan(lambda t: t["value"], table, budgets={"hours": 5})
    assert made.best["model"] == "b"
    assert np.isnan(made.best["low"])
    assert made.ties["model"].tolist() == ["b", "c"]
    assert "nan" not in str(made)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "no budget is given"),
        ({"train_gpu_hors": 3}, "did you mean 'train_gpu_hours'"),
        ({"visual_token": 3}, "budget 'visual_token' is not priced"),
        ({"train_gpu_hours": 0}, "train_gpu_hours=0 is not a positive number"),
        ({"model": 3}, "budget 'model' is not priced"),
        ({"train_gpu_hours": "200"}, "budget train_gpu_hours='200' is not a positive number"),
        ({"train_gpu_hours": None}, "budget train_gpu_hours=None is not a positive number"),
        (["train_gpu_hours"], "are no limits by name"),
        (
            {"train_gpu_hours": 1e-3, "latency_s": 1.0},
            "adventurer_tiny with 64 px images in patches of 32 px, trained on 300M images, needs train_gpu_hours=",
        ),
    ],
)
def test_mistakes_are_one_line(joint_fit, priced, budgets, message):
    with pytest.raises(UserError) as caught:
        plan(joint_fit, priced, budgets=budgets)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unpriced_budget_says_what_it_needs(joint_fit):
    space = Space(models=["adventurer_tiny"], img_sizes=[64], patch_sizes=[16])
    with pytest.raises(UserError, match="it needs images_seen and a device"):
        plan(joint_fit, space, budgets={"train_gpu_hours": 3})
    with pytest.raises(UserError, match="priced already"):
        plan(joint_fit, price(space), budgets={"infer_flops": 1e12}, device="a100")
    with pytest.raises(UserError, match="one for each is needed"):
        plan(lambda table: [1.0, 2.0], space, budgets={"infer_flops": 1e12})
    with pytest.raises(UserError, match="no finite value"):
        plan(lambda table: [np.nan], space, budgets={"infer_flops": 1e12})


def test_columns_a_plan_writes_itself_are_refused(joint_fit, priced):
    for name in ("predicted", "low", "tied", "gain", "within_budget"):
        with pytest.raises(UserError, match=f"a plan writes itself: {name}; rename or drop"):
            plan(joint_fit, priced.assign(**{name: 1.0}), budgets={"infer_flops": 1e12})


def test_ties_are_ranked_by_a_price_that_is_known(joint_fit, priced):
    cost = priced["latency_s"].where(priced["patch_size"] > 2)
    with pytest.raises(UserError, match="rank_by='cost' is no finite number in"):
        plan(joint_fit, priced.assign(cost=cost), budgets={"infer_flops": 1e12}, rank_by="cost")
    kept = plan(
        joint_fit,
        priced.assign(cost=cost, coarse=32 / priced["patch_size"]),
        budgets={"infer_flops": 1e12, "coarse": 8},
        rank_by="cost",
    )
    assert kept.best["cost"] == kept.best["latency_s"]
    assert kept.ties["cost"].is_monotonic_increasing


def test_a_slip_in_an_option_of_pricing_is_one_line(joint_fit):
    space = Space(models=["adventurer_tiny"], img_sizes=[64], patch_sizes=[16])
    with pytest.raises(UserError, match="'devise' is no option of a plan; did you mean 'device'"):
        plan(joint_fit, space, budgets={"infer_flops": 1e12}, devise="a100")
    made = plan(joint_fit, space, budgets={"infer_flops": 1e12}, device="a100", batch_size=2, infer_batch_size=2)
    assert made.conventions["memory"] == "a training step of 2 images in bf16"
    tokens = VisionLanguageSpace(llms={"7B": 7e9}, visual_tokens=[4])
    with pytest.raises(UserError, match="'batch_siz' is no option of a plan; did you mean 'batch_size'"):
        plan(lambda table: table["llm_params"], tokens, budgets={"infer_flops": 1e13}, batch_siz=2)
    named = VisionLanguageSpace(models=["paligemma-3b-224"], img_sizes=[224])
    made = plan(lambda table: -table["visual_tokens"], named, budgets={"infer_flops": 1e13}, num_images=1, new_tokens=4)
    assert made.best["model"] == "paligemma-3b-224"
