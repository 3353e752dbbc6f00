import numpy as np
import pytest

from patchscale import UserError
from patchscale.costs.counts import count
from patchscale.planner.costing import find_device, memory_bytes
from patchscale.planner.prices import price
from patchscale.planner.space import Space, free_vits
from patchscale.shapes import SHAPES


def test_only_whole_grids_of_patches_are_listed():
    space = Space(
        models=["vit_tiny", "vit_small"], img_sizes=[64, 224], patch_sizes=[7, 16, 32], images_seen=[1e6, 2e6]
    )
    frame = space.frame()
    assert sorted(set(zip(frame["img_size"], frame["patch_size"], strict=True))) == [
        (64, 16), (64, 32), (224, 7), (224, 16), (224, 32)
    ]  # fmt: skip
    assert len(frame) == 2 * 5 * 2
    assert not frame.duplicated(["model", "img_size", "patch_size", "images_seen"]).any()
    assert ((frame["img_size"] // frame["patch_size"]) ** 2 == frame["tokens"]).all()


def test_without_patch_sizes_all_divisors_are_meant():
    frame = Space(models=["vit_tiny"], img_sizes=[28]).frame()
    assert frame["patch_size"].tolist() == [14, 7, 4, 2, 1]
    assert "images_seen" not in frame


def test_patterns_leave_models_for_tests_out_and_fixed_columns_are_there():
    space = Space(models=["deit_*", "deit_tiny"], img_sizes=[224], patch_sizes=[16], fixed={"recipe": "deit"})
    assert space.models == ("deit_tiny", "deit_small", "deit_base", "deit_large", "deit_huge")
    assert set(space.frame()["recipe"]) == {"deit"}
    assert not any(name.endswith(("_test", "_nano")) for name in Space(models=["*"], img_sizes=[32]).models)


def test_prices_are_those_of_the_costs_for_every_row():
    space = Space(
        models=["vit_tiny", "adventurer_tiny"], img_sizes=[64, 128], patch_sizes=[16, 4], images_seen=[1e6, 3e7]
    )
    priced = price(space, device="a100", batch_size=32, num_classes=10)
    assert len(priced) == 16
    device = find_device("a100")
    for row in priced.to_dict("records"):
        counts = count(row["model"], patch_size=row["patch_size"], img_size=row["img_size"], num_classes=10)
        assert row["params_backbone"] == counts.params_backbone
        assert row["params_total"] == counts.params_total
        assert row["infer_flops"] == counts.flops_forward
        assert row["train_flops"] == pytest.approx(counts.flops_train * row["images_seen"])
        memory = memory_bytes(counts, device, batch_size=32, infer_batch_size=1)
        assert {name: row[name] for name in memory} == memory
        assert memory["peak_memory_bytes"] > 16 * counts.params_total  # weights, gradients, two moments
        hours = device.seconds(counts, True, 32) / 32 * row["images_seen"] / 3600
        assert row["train_gpu_hours"] == pytest.approx(hours)
        assert row["latency_s"] == pytest.approx(device.seconds(counts, False, 1))


def test_assumed_hours_are_those_of_the_paper():
    """Table 6 of arXiv 2502.03738: DeiT-Base, 224 px, one epoch of ImageNet-1k on one A100."""
    space = Space(models=["deit_base"], img_sizes=[224], patch_sizes=[16, 8, 4, 2, 1], images_seen=[1_281_167])
    hours = price(space, device="A100").set_index("patch_size")["train_gpu_hours"]
    for patch_size, printed in {16: 0.36, 8: 1.86, 4: 9.79, 2: 80.06, 1: 967.99}.items():
        assert hours[patch_size] == pytest.approx(printed, rel=0.12)


def test_time_can_come_from_any_function_and_is_not_priced_without():
    space = Space(models=["vit_tiny"], img_sizes=[64], patch_sizes=[16, 8], images_seen=[3.6e6])
    priced = price(
        space, seconds=lambda counts, train, batch_size: batch_size * (3 if train else 1) * counts.tokens / 1e3
    )
    assert priced["latency_s"].tolist() == [0.064, 0.016] or priced["latency_s"].tolist() == [0.016, 0.064]
    assert np.allclose(priced["train_gpu_hours"], 3 * priced["latency_s"] * 1000)
    assert "latency_s" not in price(space)


def test_free_shapes_are_models_like_the_others():
    before = dict(SHAPES)
    shapes = free_vits([192, 256], [4, 12])
    assert list(shapes) == ["vit_d192_l4", "vit_d192_l12", "vit_d256_l4", "vit_d256_l12"]
    assert shapes["vit_d192_l12"] == SHAPES["vit_tiny"]
    space = Space(models=["vit_tiny"], shapes=shapes, img_sizes=[64], patch_sizes=[16])
    assert space.models == ("vit_tiny", *shapes)
    priced = price(space, device="a100")
    tiny = count("vit_tiny", patch_size=16, img_size=64)
    numbers = priced.drop(columns="model").set_index(priced["model"])
    assert numbers.loc["vit_d192_l12"].equals(numbers.loc["vit_tiny"])
    assert Space(shapes=shapes, img_sizes=[64]).models == tuple(shapes)
    assert before == SHAPES  # nothing is entered where others look
    with pytest.raises(UserError, match="shapes: 'vit_tiny' is a built-in model"):
        Space(shapes={"vit_tiny": shapes["vit_d192_l12"]}, img_sizes=[64])
    assert priced.set_index("model").loc["vit_d192_l12", "infer_flops"] == tiny.flops_forward
    with pytest.raises(UserError, match="width 200 is not a multiple of head_dim=64"):
        free_vits([200], [4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["vit_bse"]}, "model 'vit_bse' is unknown; did you mean 'vit_base'"),
        ({"models": ["swin_*"]}, "no built-in model matches 'swin_*'"),
        ({"models": []}, "no models"),
        ({"img_sizes": []}, "no img_sizes"),
        ({"img_sizes": [0]}, "img_sizes: 0 is not a positive number"),
        ({"patch_sizes": [16, 15]}, "patch size 15 divides none of the image sizes 64, 224"),
        ({"images_seen": [float("nan")]}, "images_seen: nan is not a positive number"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(UserError) as caught:
        Space(**{"models": ["vit_tiny"], "img_sizes": [224, 64], **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_refused_with_the_names():
    with pytest.raises(UserError, match=r"device 'tpu' is not known; choose one of .*a100"):
        price(Space(models=["vit_tiny"], img_sizes=[64]), device="tpu")


def test_a_million_configurations_are_priced_by_a_few_counts():
    space = Space(
        models=["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"],
        img_sizes=[64, 128, 224],
        patch_sizes=[32, 16, 8],
        images_seen=np.geomspace(1e6, 1e9, 25_000),
    )
    priced = price(space)
    assert len(priced) == 5 * 9 * 25_000
    per_image = (priced["train_flops"] / priced["images_seen"]).to_numpy().reshape(-1, 25_000)
    assert np.allclose(per_image, per_image[:, :1], rtol=1e-12)
    assert len(np.unique(per_image[:, 0])) == 45
    base = priced[(priced["model"] == "vit_base") & (priced["img_size"] == 224) & (priced["patch_size"] == 8)]
    assert base["infer_flops"].unique().tolist() == [count("vit_base", patch_size=8, img_size=224).flops_forward]
