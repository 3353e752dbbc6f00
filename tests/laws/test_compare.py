"""Forms compared by AICc and by leaving out levels: the founding table, and data whose law is known."""

import numpy as np
import pandas as pd
import pytest

from patchscale import UserError, published
from patchscale.laws.compare import compare_laws
from patchscale.laws.left_out import CARRIED


@pytest.fixture(scope="module")
def adventurer():
    """The forty runs of complete curves."""
    table = published("patchification/imagenet")
    table = table[table["architecture"] == "adventurer"]
    return compare_laws(table[(table["img_size"] > 64) | (table["model"] == "Adventurer-Base")], target="error")


def test_the_founding_table_is_described_best_by_the_relative_patch_law(adventurer):
    table = adventurer.frame().set_index("form")
    assert table.index[0] == "relative-patch"
    assert adventurer.points == 40
    assert table["behind"].iloc[1] > 30
    assert table["parameters"].to_dict() == {
        "relative-patch": 8,
        "relative-patch:h=0": 7,
        "product": 5,
        "relative-patch:C=0": 6,
        "additive": 7,
        CARRIED: 0,
    }


def test_pixel_patches_and_larger_models_are_foretold_by_different_forms(adventurer):
    table = adventurer.frame().set_index("form")
    assert 0.37 < table.loc["relative-patch", "patch_size_end"] < 0.41
    smallest = adventurer.end("patch_size")
    assert next(form for form in smallest if form != CARRIED) == "relative-patch"
    largest = adventurer.end("params_backbone")
    assert largest["additive"] < largest["relative-patch:h=0"] < largest["relative-patch"]
    assert adventurer.disagree
    assert "The rankings disagree" in str(adventurer)
    assert "by AICc relative-patch leads, 31.0 ahead of relative-patch:h=0" in str(adventurer)


def test_the_last_value_carried_forward_is_counted_by_hand(adventurer):
    table = published("patchification/imagenet")
    table = table[(table["architecture"] == "adventurer") & (table["img_size"] >= 64)]
    curves = table.pivot_table(index=["model", "img_size"], columns="patch_size", values="metric").dropna()
    assert len(curves) == 8
    by_hand = 100 * float(np.sqrt(np.mean((curves[2] - curves[1]) ** 2)))
    assert adventurer.end("patch_size")[CARRIED] == pytest.approx(by_hand)
    # it beats every law at p = 1, and not the one at 224 px
    assert next(iter(adventurer.end("patch_size"))) == CARRIED
    assert next(iter(adventurer.end("img_size"))) != CARRIED
    assert "carrying the last value forward 0.209, which is closer" in str(adventurer)


def test_a_level_held_out_is_not_in_the_fit(adventurer):
    """Along p the hold-out errors of the leading form are those of fits to the other rows."""
    from patchscale import fit_law

    table = published("patchification/imagenet")
    table = table[(table["architecture"] == "adventurer")]
    table = table[(table["img_size"] > 64) | (table["model"] == "Adventurer-Base")]
    held = table[table["patch_size"] == 4]
    fit = fit_law(table[table["patch_size"] != 4], form="relative-patch", target="error", draws=40)
    error = 100 * (fit.predict(held)["predicted"] - (1 - held["metric"]))
    one = adventurer.holdouts.query("form == 'relative-patch' and column == 'patch_size' and value == 4").iloc[0]
    assert one["side"] == "inside"
    assert one["rows"] == len(held) == 8
    assert one["rmse"] == pytest.approx(float(np.sqrt(np.mean(error**2))), rel=1e-3)
    assert one["bias"] == pytest.approx(float(error.mean()), rel=1e-3)


def test_a_fit_holds_out_what_the_comparison_does(adventurer):
    """The same ends with the same errors, and none where the rest leaves the end open: c from two image sizes."""
    from patchscale import fit_law

    table = published("patchification/imagenet")
    table = table[(table["architecture"] == "adventurer")]
    table = table[(table["img_size"] > 64) | (table["model"] == "Adventurer-Base")]
    ends = adventurer.holdouts.query("side == 'end'")
    for form in ("relative-patch", "relative-patch:C=0", "additive"):
        fit = fit_law(table, form=form, target="error", draws=40)
        expected = ends[ends["form"] == form].set_index("column")
        found = {one.column: one for one in fit.holdouts}
        assert set(found) == set(expected.index)
        for column, one in found.items():
            assert (one.value, one.rows) == tuple(expected.loc[column, ["value", "rows"]])
            assert 100 * one.rmse == pytest.approx(expected.loc[column, "rmse"], rel=1e-6)
            assert 100 * one.bias == pytest.approx(expected.loc[column, "bias"], rel=1e-6)
        if form == "relative-patch":
            assert "img_size" not in found


def test_what_the_rows_cannot_support_is_listed_or_left_empty(adventurer):
    assert [one.form for one in adventurer.refused] == ["tokens"]
    assert "img_size varies" in adventurer.refused[0].reason
    # three image sizes: with one left out additive cannot be fitted, and c of relative-patch can be anything
    table = adventurer.frame().set_index("form")
    assert table["img_size_end"].dropna().index.tolist() == ["relative-patch:C=0", CARRIED]
    assert "At img_size 224 only relative-patch:C=0 can be held out" in str(adventurer)
    sides = adventurer.holdouts.drop_duplicates(["column", "value"]).set_index(["column", "value"])["side"]
    assert (sides["patch_size"][1.0], sides["patch_size"][16.0], sides["img_size"][224.0]) == ("end", "start", "end")


def test_siglip2_is_described_best_by_a_product():
    compared = compare_laws(published("siglip2/imagenet"), target="error")
    table = compared.frame().set_index("form")
    assert table.index[0] == "product"
    assert 3 < table.loc["relative-patch:C=0", "behind"] < 6
    assert {one.form for one in compared.refused} == {"relative-patch", "relative-patch:h=0", "tokens"}


def test_two_patch_sizes_support_one_form_only():
    """XCiT: two patch sizes, distillation as a factor."""
    table = published("timm/imagenet-vit").query("family == 'xcit'")
    table = table.assign(params_backbone=table["params_total"])
    compared = compare_laws(table, target="error", factors=["pretrain_tag"])
    assert [score.form for score in compared.scores] == ["relative-patch:C=0"]
    assert compared.scores[0].aicc == pytest.approx(-324.7, abs=0.1)
    reasons = {one.form: one.reason for one in compared.refused}
    assert "2 distinct patch_size (16, 8)" in reasons["additive"]
    # with one patch size left out the patch term cannot be told: no hold-out, and nothing to disagree about
    assert not len(compared.holdouts.query("column == 'patch_size' and form == 'relative-patch:C=0'"))
    assert not compared.disagree


def planted(law, *, noise=0.002, rng=0):
    rows = [(p, r, N) for p in (32, 16, 8, 4) for r in (96, 160, 224, 320) for N in (5e6, 2e7, 8e7, 3e8)]
    table = pd.DataFrame(rows, columns=["patch_size", "img_size", "params_backbone"]).astype(float)
    values = law(*(table[name] for name in table.columns))
    return table.assign(test_loss=values * np.exp(noise * np.random.default_rng(rng).normal(size=len(table))))


FORMS = ("relative-patch", "relative-patch:h=0", "additive", "product")


@pytest.mark.parametrize(
    ("form", "law"),
    [
        ("relative-patch", lambda p, r, N: 0.4 + 9 * (p / r) ** 1.3 * (N / 1e7) ** -0.4 + 0.3 * (N / 1e7) ** -0.5),
        ("additive", lambda p, r, N: 0.4 + 0.02 * p**1.1 + 0.3 * (N / 1e7) ** -0.5 + 20 * r**-0.9),
        ("product", lambda p, r, N: 0.4 + 3 * p**0.8 * (N / 1e7) ** -0.4 * r**-0.6),
    ],
)
def test_a_known_law_leads_both_rankings(form, law):
    compared = compare_laws(planted(law), forms=FORMS)
    table = compared.frame().set_index("form")
    assert table.index[0].startswith(form)
    assert compared.inside[form] <= 1.05 * min(compared.inside.values())
    assert compared.inside[form] == pytest.approx(0.002 * 0.8, rel=0.7)
    for column in ("patch_size", "img_size", "params_backbone"):
        rivals = [rmse for other, rmse in compared.end(column).items() if other == CARRIED or other == "additive"]
        assert compared.end(column)[form] <= min(rivals)


def test_rows_that_one_form_cannot_use_are_left_out_for_all():
    table = planted(lambda p, r, N: 0.4 + 9 * (p / r) ** 1.3 + 0.3 * (N / 1e7) ** -0.5)
    table.loc[table.index[:3], "params_backbone"] = np.nan
    compared = compare_laws(table, forms=["additive", "additive:patch_size,img_size"], allow_mixed=True)
    assert (compared.points, compared.left_out) == (61, 3)


def test_groups_seen_only_at_one_level_are_not_scored():
    table = planted(lambda p, r, N: 0.4 + 9 * (p / r) ** 1.3 + 0.3 * (N / 1e7) ** -0.5)
    table["recipe"] = np.where(table["patch_size"] == 4, "long", "short")
    compared = compare_laws(table, forms=["additive"], groups=["recipe"])
    smallest = compared.holdouts.query("column == 'patch_size' and value == 4")
    assert len(smallest) == 0
    laws = compared.holdouts.query("form == 'additive'").set_index(["column", "value"])
    assert laws.loc[("img_size", 160), "rows"] == 16
    # two patch sizes of the short recipe are left, and p = 4 has a floor of its own: any exponent fits
    assert ("patch_size", 8) not in laws.index


def test_nothing_that_can_be_fitted_is_one_line():
    table = pd.DataFrame({"patch_size": [16, 8], "test_loss": [1.0, 0.9]})
    with pytest.raises(UserError, match="no form can be fitted to these rows: patch: 2 distinct patch_size") as caught:
        compare_laws(table)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="give a list"):
        compare_laws(table, forms="patch")


def test_json_holds_what_is_printed(adventurer):
    values = adventurer.to_dict()
    assert values["sentence"] == str(adventurer)
    assert values["disagree"] is True
    assert {row["form"] for row in values["holdouts"]} == {row["form"] for row in values["forms"]}


def test_encoder_terms_are_candidates_where_the_table_has_what_the_encoder_sees():
    """Four language models, five image sizes, tokens merged after the encoder; the term is planted, then left out."""
    rows = [
        {"llm_params": N, "img_size": r, "patch_size": 14, "visual_tokens": (r / 14) ** 2 / share}
        for N in (5e8, 2e9, 7e9, 3e10)
        for r in (224, 336, 448, 672, 896)
        for share in (1, 9)
    ]
    table = pd.DataFrame(rows)
    noise = np.random.default_rng(0).normal(scale=1e-3, size=len(table))
    language = 0.1 + 10 * table["llm_params"] ** -0.2 * table["visual_tokens"] ** -0.1
    seen = 2 * (table["patch_size"] / table["img_size"]) ** 1.1
    found = compare_laws(table.assign(metric=1 - (language + seen) * (1 + noise)), target="error")
    assert found.scores[0].form == "vlm:encoder"
    assert {score.form for score in found.scores} == {"vlm", "vlm-additive", "vlm:encoder", "vlm-additive:encoder"}
    assert set(found.columns) == {"llm_params", "visual_tokens", "img_size"}
    frame = found.frame().set_index("form")
    for column in found.columns:
        assert np.isfinite(frame.loc["vlm:encoder", column])
        assert frame.loc["vlm:encoder", f"{column}_end"] < frame.loc["vlm", f"{column}_end"]
    without = compare_laws(table.assign(metric=1 - language * (1 + noise)), target="error")
    assert without.scores[0].form == "vlm"
    assert not compare_laws(table.drop(columns=["patch_size"]).assign(metric=1 - language), target="error").refused
