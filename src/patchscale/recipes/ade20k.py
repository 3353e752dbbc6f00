"""Adventurer on ADE20K, as in the patch scaling paper (arXiv 2502.03738): with one linear layer, or with UPerNet.

The paper gives AdamW, learning rate 5e-5, weight decay 0.01, batch 16, 160,000 iterations, and a start from a
classifier. It says nothing of crop, schedule, stochastic depth or test protocol. Ours: 512 px; 1,500 steps of warm-up,
then cosine to 0; drop path 0.1; the usual scale jitter; sliding windows, overlapping by a third, at one
scale, on the original masks. UPerNet has 192 channels, which gives the paper's count of parameters
(`patchscale.head_shapes.UperNetShape`).
"""

from collections.abc import Callable
from functools import partial

from patchscale.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from patchscale.recipes.imagenet import FROM_WEIGHTS

STEPS, WARMUP_STEPS, BATCH_SIZE = 160_000, 1_500, 16
HEADS = {"linear": "linear", "upernet": "upernet_192"}


def ade20k(size: str = "base", decoder: str = "linear", *, patch_size: int = 16, img_size: int = 512) -> RunConfig:
    """Adventurer-Tiny or -Base, `decoder` linear or upernet; starts from a classifier: training.init_from=FILE.

    The classifier's patch and image size may be others: its patch kernel and position table are resized, its head is
    left out.
    """
    return RunConfig(
        recipe=f"ade20k-{size}-{decoder}",
        task="segmentation",
        head=HEADS[decoder],
        model=ModelConfig(name=f"adventurer_{size}", patch_size=patch_size, img_size=img_size, drop_path_rate=0.1),
        data=DataConfig(name="ade20k", root="ade20k", val_fraction=0.01, augment="scale_jitter"),
        training=TrainingConfig(
            steps=STEPS,
            batch_size=BATCH_SIZE,
            learning_rate=5e-5,
            min_learning_rate=0.0,
            warmup_fraction=WARMUP_STEPS / STEPS,
            weight_decay=0.01,
            precision="bf16",
            num_validations=10,
        ),
    )


_MIOU = {
    ("tiny", "linear"): "mIoU 40.0, 41.6, 42.1, 42.5 % with patch 16, 8, 4, 2",
    ("tiny", "upernet"): "mIoU 41.3 % with patch 16",
    ("base", "linear"): "mIoU 44.0, 45.5, 46.3, 46.8 % with patch 16, 8, 4, 2",
    ("base", "upernet"): "mIoU 45.7 % with patch 16",
}
_A100_HOURS = {
    ("tiny", "linear"): 0.607,
    ("tiny", "upernet"): 2.00,
    ("base", "linear"): 4.61,
    ("base", "upernet"): 6.65,
}


def _variant(size: str, decoder: str) -> Callable[[], RunConfig]:
    """A recipe of its own, with a docstring of its own."""
    made = partial(ade20k, size, decoder)
    config = made()
    FROM_WEIGHTS.add(config.recipe)
    made.__doc__ = f"""Adventurer-{size.capitalize()} on ADE20K at 512 px, {decoder} head, from a classifier

    Command: patchscale train --recipe {config.recipe} data.root=FOLDER training.init_from=FILE [--patch-size P]
    Expected: {_MIOU[size, decoder]} (arXiv 2502.03738, Table 2)
    Cost: {_A100_HOURS[size, decoder]:g} hours of one A100, from published hours and not measured:
    patchscale cost {config.model.name} --patch-size 16 --img-size 512 --task segmentation --head {config.head} \\
        --num-classes 150 --batch-size 16 --images {STEPS * BATCH_SIZE} --epochs 1 --device a100
    """
    return made


ADE20K: dict[str, Callable[[], RunConfig]] = {
    f"ade20k-{size}-{decoder}": _variant(size, decoder) for size in ("tiny", "base") for decoder in HEADS
}
