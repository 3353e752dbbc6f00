"""DeiT III on ImageNet-1k (arXiv 2204.07118): pretraining, and the fine-tuning at a larger size that follows it.

Hyper-parameters are those of the commands in README_revenge.md of facebookresearch/deit. The models are timm's deit3_*
with LayerScale at 1e-4 as in that code (timm starts it at 1e-6). Our choices: Huge is pretrained at 154 px, which is
what 11 x 11 patches of 14 px cover of the original's 160; pictures are evaluated without a margin (crop ratio 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from patchscale.config import ModelConfig, RunConfig
from patchscale.recipes.imagenet import imagenet, released_training, variant


@dataclass(frozen=True, kw_only=True)
class _Size:
    model: str
    patch_size: int = 16
    pretrain_px: int
    finetune_px: int = 224
    learning_rate: float = 3e-3
    drop_path: float
    finetune_drop_path: float
    published: str
    a100_hours: tuple[float, float]
    """Of pretraining and fine-tuning."""


SIZES = {
    "small": _Size(
        model="deit3_small_patch16_224",
        pretrain_px=224,
        finetune_px=384,
        learning_rate=4e-3,
        drop_path=0.05,
        finetune_drop_path=0.0,
        published="top1 81.4 % at 224 px, 83.4 % after fine-tuning at 384",
        a100_hours=(77.7, 6.54),
    ),
    "base": _Size(
        model="deit3_base_patch16_224",
        pretrain_px=192,
        drop_path=0.2,
        finetune_drop_path=0.2,
        published="top1 83.8 % after fine-tuning at 224 px",
        a100_hours=(216, 7.43),
    ),
    "large": _Size(
        model="deit3_large_patch16_224",
        pretrain_px=192,
        drop_path=0.45,
        finetune_drop_path=0.45,
        published="top1 84.9 % after fine-tuning at 224 px",
        a100_hours=(762, 26.1),
    ),
    "huge": _Size(
        model="deit3_huge_patch14_224",
        patch_size=14,
        pretrain_px=154,
        drop_path=0.6,
        finetune_drop_path=0.55,
        published="top1 85.2 % after fine-tuning at 224 px",
        a100_hours=(1324, 70.9),
    ),
}


def deit3_pretrain(size: str = "base", *, patch_size: int | None = None, img_size: int | None = None) -> RunConfig:
    """800 epochs with LAMB, binary cross-entropy and 3-Augment; sizes in pixels are the original's unless given."""
    its = SIZES[size]
    return RunConfig(
        recipe=f"deit3-{size}-pretrain",
        model=_model(its, patch_size, img_size or its.pretrain_px, its.drop_path),
        data=imagenet(augment="three_augment", repeated_augment=3, eval_crop_ratio=1.0),
        training=released_training(
            epochs=800,
            warmup_epochs=5,
            batch_size=2048,
            learning_rate=its.learning_rate,
            weight_decay=0.05,
            optimizer="lamb",
            loss="bce",
            clip_grad_norm=1.0,  # part of the fused LAMB that the original uses
        ),
    )


def deit3_finetune(size: str = "base", *, patch_size: int | None = None, img_size: int | None = None) -> RunConfig:
    """20 epochs with AdamW, soft cross-entropy and RandAugment, from the weights of `deit3_pretrain`."""
    its = SIZES[size]
    return RunConfig(
        recipe=f"deit3-{size}-finetune",
        model=_model(its, patch_size, img_size or its.finetune_px, its.finetune_drop_path),
        data=imagenet(augment="rand_augment", eval_crop_ratio=1.0),
        training=released_training(
            epochs=20, warmup_epochs=5, batch_size=512, learning_rate=1e-5, weight_decay=0.1, label_smoothing=0.1
        ),
    )


def deit3_stages(size: str = "base", *, patch_size: int | None = None) -> dict[str, Any]:
    """The study of both stages, as a study file would have it."""
    patch_size = patch_size or SIZES[size].patch_size
    return {
        "study": f"deit3-{size}-p{patch_size}",
        "base": {"model": {"patch_size": patch_size}},
        "stages": [{"recipe": f"deit3-{size}-pretrain"}, {"recipe": f"deit3-{size}-finetune"}],
    }


def _model(its: _Size, patch_size: int | None, img_size: int, drop_path_rate: float) -> ModelConfig:
    return ModelConfig(
        name=its.model,
        patch_size=patch_size or its.patch_size,
        img_size=img_size,
        drop_path_rate=drop_path_rate,
        drop_path_schedule="constant",
        layer_scale_init=1e-4,
    )


DEIT3: dict[str, Callable[[], RunConfig]] = {
    f"deit3-{size}-{name}": variant(
        make,
        size,
        about=f"DeiT III {size}, {what}",
        expected=f"{its.published} (README_revenge.md of facebookresearch/deit)",
        a100_hours=its.a100_hours[stage],
        from_weights=stage > 0,
    )
    for size, its in SIZES.items()
    for stage, (name, make, what) in enumerate(
        [
            ("pretrain", deit3_pretrain, f"800 epochs at {its.pretrain_px} px"),
            ("finetune", deit3_finetune, f"then 20 epochs at {its.finetune_px} px"),
        ]
    )
}
