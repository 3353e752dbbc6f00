"""Detection and instance masks on COCO with the settings of arXiv 2502.03738, for any patch size.

Stated there (Section 4.1): Cascade Mask R-CNN, AdamW, learning rate 1e-4, weight decay 0.05, 12 epochs, and a short
side of 800 px. Not stated, and our choice: batches of 16, a warm-up of about 900 steps and a cosine to 0, gradients
clipped at 1, drop path 0.1, no layer decay, and short sides of 640 to 800 px in training, as is usual for COCO.

The canvas is fixed, 800 x 1344 px, because Adventurer learns a position for every patch: a landscape picture has the
usual short side of 800, an upright one must fit 800 px of height and so is smaller than elsewhere. 1344 is the next
multiple of 64 above the usual 1333.
"""

from collections.abc import Callable
from functools import partial

from patchscale.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from patchscale.recipes.imagenet import FROM_WEIGHTS

ROOT = "coco"
"""Folder with train2017/, val2017/ and annotations/; give yours as data.root=FOLDER."""

_PUBLISHED = {  # box AP and mask AP; arXiv 2502.03738, Table 3
    "tiny": "44.7, 46.5, 48.0, 48.5, 48.7 box AP and 38.4, 40.3, 41.7, 42.2, 42.4 mask AP with patch 32, 16, 8, 4, 2",
    "base": "44.1, 46.4, 48.4, 49.5, 50.3 box AP and 38.3, 40.6, 42.0, 42.9, 43.4 mask AP with patch 64, 32, 16, 8, 4",
}
_A100_HOURS = {"tiny": 6.10, "base": 15.6}


def coco(size: str = "base", *, patch_size: int = 16, head: str = "cascade_mask_rcnn") -> RunConfig:
    """Fine-tuning on COCO from a classifier of the same patch size (the paper's way) or of another."""
    height = 832 if patch_size == 64 else 800
    return RunConfig(
        recipe=f"coco-adventurer-{size}",
        task="detection",
        head=head,
        model=ModelConfig(
            name=f"adventurer_{size}", patch_size=patch_size, img_size=(height, 1344), drop_path_rate=0.1
        ),
        data=DataConfig(name="coco", root=ROOT, val_fraction=0.01, augment="shortest_edge"),
        training=TrainingConfig(
            epochs=12,
            batch_size=16,
            learning_rate=1e-4,
            min_learning_rate=0.0,
            weight_decay=0.05,
            warmup_fraction=0.01,
            precision="bf16",
            clip_grad_norm=1.0,
        ),
    )


def _variant(size: str) -> Callable[[], RunConfig]:
    recipe = partial(coco, size)
    recipe.__doc__ = f"""Adventurer-{size.capitalize()} with Cascade Mask R-CNN on COCO, 12 epochs, short side 800 px

    Command: patchscale train --recipe coco-adventurer-{size} data.root=FOLDER training.init_from=FILE [--patch-size P]
        FILE: a classifier's weights, at whatever patch and image size. With --patch-size 64: --img-size 832x1344.
    Expected: {_PUBLISHED[size]} (arXiv 2502.03738, Table 3); not repeated here.
    Cost: {_A100_HOURS[size]:g} hours of one A100 at patch 16, from published hours of classifiers and not measured:
    patchscale cost adventurer_{size} --patch-size 16 --img-size 800x1344 --task detection --head cascade_mask_rcnn \\
        --num-classes 81 --batch-size 16 --images coco --epochs 12 --device a100
    """
    return recipe


COCO: dict[str, Callable[[], RunConfig]] = {f"coco-adventurer-{size}": _variant(size) for size in _PUBLISHED}
FROM_WEIGHTS.update(COCO)
