import pandas as pd
import pytest

from patchscale import UserError, published
from patchscale.published_tables.tables import PUBLISHED, entry, list_published

CURVES = (
    "patchification/imagenet",
    "patchification/test-loss",
    "patchification/ade20k",
    "patchification/coco",
    "siglip2/imagenet",
    "flexivit/training-length",
)


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


@pytest.mark.parametrize("name", CURVES)
def test_every_named_model_has_the_parameters_joint_laws_need(name):
    table = published(name)
    assert (table["params_backbone"].notna() == table["model"].notna()).all()
    for _, rows in table.dropna(subset=["model"]).groupby("model"):
        area = 3 * rows["patch_size"].astype(int) ** 2
        if len(set(area)) > 1:
            embed_dim = (rows["params_backbone"].max() - rows["params_backbone"].min()) / (area.max() - area.min())
            rows = rows.assign(params_backbone=rows["params_backbone"] - embed_dim * area)
        assert len(set(rows["params_backbone"])) == 1  # only the patch embedding depends on the patch size


@pytest.mark.parametrize(("name", "within"), [("patchification/imagenet", 0.08), ("siglip2/imagenet", 0.14)])
def test_counted_parameters_agree_with_the_printed_ones(name, within):
    table = published(name).dropna(subset=["params_total"])
    ratio = table["params_backbone"].astype(float) / table["params_total"]
    assert len(ratio) > 10
    assert ratio.between(1 - within, 1 + within).all()


def test_counted_parameters_are_those_of_a_run_of_the_same_model():
    from patchscale.costs.counts import count

    table = published("patchification/imagenet").query("img_size == 128 and patch_size == 8").set_index("model")
    for published_name, name in {"DeiT-Base": "deit_base", "Adventurer-Large": "adventurer_large"}.items():
        counts = count(name, patch_size=8, img_size=128)
        assert table.loc[published_name, "params_backbone"] == counts.params_backbone


def test_siglip_has_fifteen_points_with_three_image_sizes_and_three_patch_sizes_or_more():
    table = published("siglip2/imagenet")
    assert len(table) == 15
    assert table["patch_size"].value_counts().to_dict() == {16: 12, 14: 2, 32: 1}
    assert table.query("model == 'SigLIP2-So400m' and img_size == 384 and patch_size == 14")["tokens"].item() == 27**2
    base = table.query("model == 'SigLIP2-B'").set_index(["patch_size", "img_size"])["metric"]
    assert base[(32, 256)] == 0.74
    assert base[(16, 512)] == 0.812


def test_the_faulty_cell_of_the_token_table_is_marked_and_cannot_be_fitted():
    table = published("vlm/tokens-llm-size")
    assert table.groupby("task").size().to_dict() == {"visual reasoning": 28, "OCR": 28}
    assert sorted(table["llm_params"].unique()) == [0.5e9, 1.8e9, 4e9, 7e9]
    assert sorted(table["visual_tokens"].unique()) == [1, 4, 16, 36, 64, 144, 576]
    faulty = table[table["faulty"]]
    assert table["metric"].isna().equals(table["faulty"])
    assert faulty[["task", "llm_params", "visual_tokens"]].to_numpy().tolist() == [["OCR", 7e9, 576]]
    twin = table.query("task == 'OCR' and llm_params == 4e9 and visual_tokens == 576")
    assert faulty["metric_as_released"].item() == twin["metric_as_released"].item() == twin["metric"].item()
    assert table.loc[table["note"].notna(), "metric_as_released"].tolist() == [0.155895545, 0.3460536811]


def test_resolution_is_worth_much_on_documents_and_nothing_on_knowledge():
    table = published("paligemma/resolution")
    assert len(table) == 46
    assert set(table["visual_tokens"]) == {256, 1024, 4096}
    scores = table.set_index(["task", "img_size"])["metric"]
    assert scores["DocVQA", 896] - scores["DocVQA", 224] == pytest.approx(0.4103)
    assert scores["OKVQA", 448] < scores["OKVQA", 224]


def test_longer_training_is_better_for_every_size():
    table = published("flexivit/training-length").sort_values("images_seen")
    assert table["images_seen"].iloc[0] == 300 * 1_281_167
    for _, rows in table.groupby("model"):
        assert len(rows) == 3
        assert rows["metric"].is_monotonic_increasing


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
