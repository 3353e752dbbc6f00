import pandas as pd
import pytest

from patchscale import UserError, published
from patchscale.published_tables.tables import PUBLISHED, entry, list_published

CURVES = ("patchification/imagenet", "patchification/test-loss", "patchification/ade20k", "patchification/coco")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_table_loads_with_its_sources(name):
    table = published(name)
    assert len(table)
    assert table["source"].notna().all()
    assert table["source"].str.len().min() > 0
    assert table.attrs["name"] == name
    assert table.attrs["source"] == PUBLISHED[name].source
    assert "input_size" not in table or table["input_size"].dtype == "str"


def test_the_list_has_a_row_per_table():
    table = list_published()
    assert list(table.columns) == ["name", "rows", "description", "source"]
    assert table["name"].tolist() == list(PUBLISHED)
    assert dict(zip(table["name"], table["rows"], strict=True))["patchification/test-loss"] == 45


@pytest.mark.parametrize("name", CURVES)
def test_curve_tables_use_the_columns_of_runs_and_fractions(name):
    table = published(name)
    assert {"task", "dataset", "model", "architecture", "patch_size", "source"} <= set(table.columns)
    assert set(table["architecture"].dropna()) <= {"vit", "adventurer"}
    if "metric" in table:
        assert table["metric"].dropna().between(0.3, 0.9).all()
        assert table.loc[table["metric"].notna(), "metric_name"].notna().all()
    if "tokens" in table:
        known = table.dropna(subset=["tokens"])
        assert ((known["img_size"] // known["patch_size"]) ** 2 == known["tokens"]).all()


def test_points_that_two_tables_of_the_paper_share_appear_once_with_both_sources():
    table = published("patchification/imagenet")
    assert len(table) == 53
    assert not table.duplicated(["model", "img_size", "patch_size"]).any()
    shared = table.query("model == 'Adventurer-Base' and img_size == 224")
    assert shared["source"].tolist() == ["Table 1; Table 4"] * 5
    assert shared["metric"].tolist() == [0.826, 0.839, 0.843, 0.845, 0.846]
    pixel = table.query("model == 'Adventurer-Base' and img_size == 64 and patch_size == 1")
    assert pixel["source"].item() == "Table 1; Patch_Scaling README"
    assert table.query("model == 'DeiT-Base' and img_size == 64 and patch_size == 16")["params_total"].item() == 86e6


def test_losses_carry_their_panel():
    table = published("patchification/test-loss")
    assert "".join(table["panel"].drop_duplicates()) == "abcdefghi"
    assert (table.groupby("panel").size() == 5).all()
    c = table[table["panel"] == "c"]
    assert c["model"].unique().tolist() == ["Adventurer-Base"]
    assert c["img_size"].unique().tolist() == [224]
    assert c["test_loss"].tolist() == [0.7184, 0.6775, 0.6530, 0.6447, 0.6355]
    assert c["tokens"].tolist() == [196, 784, 3136, 12544, 50176]
    nameless = table[table["model"].isna()]
    assert set(nameless["panel"]) == set("def")
    assert nameless["img_size"].isna().all()


def test_figure_1_d_is_the_same_in_both_tables():
    losses = published("patchification/ade20k").dropna(subset=["test_loss"])
    assert losses["metric"].isna().all()
    panel = published("patchification/test-loss").query("panel == 'd'")
    assert losses["test_loss"].tolist() == panel["test_loss"].tolist()
    pixels = published("patchification/figure1-pixels")
    assert pixels["test_loss"].tolist() == published("patchification/test-loss")["test_loss"].tolist()


def test_detection_keeps_box_and_mask():
    table = published("patchification/coco")
    row = table.query("model == 'Adventurer-Base' and patch_size == 4").set_index("metric_name")
    assert row["metric"].to_dict() == {"box AP": 0.503, "mask AP": 0.434}
    assert row["ap50"].to_dict() == {"box AP": 0.685, "mask AP": 0.66}


def test_approximate_cells_are_marked():
    table = published("adventurer/imagenet")
    about = table[table["approximate"]]
    assert about["model"].tolist() == ["Vim-Base"]
    assert about["metric"].item() == 0.819
    assert about["train_throughput_img_s"].item() == 200
    assert pd.api.types.is_float_dtype(table["metric"])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("patchification/imagent", "'patchification/imagenet'"),
        ("coco", "'patchification/coco'"),
        ("test-loss", "'patchification/test-loss'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_the_list(name, nearest):
    with pytest.raises(UserError, match=f"did you mean {nearest}") as caught:
        published(name)
    assert "adventurer/downstream" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no published table 'x' \(tables"):
        entry("x")
