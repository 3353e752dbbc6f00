"""Adventurer on ImageNet-1k in up to three stages, for any patch size (arXiv 2502.03738, Tables 8 to 10).

    64 px     stage 1 at 64
    128 px    stage 1 at 128, stage 3 (fine-tuning) at 128
    224 px    stage 1 at 128, stage 2 (intermediate) at 224, stage 3 at 224

The tables' learning rates are for a batch of 512; they are multiplied by batch / 512, as in the released code. They
give no stage 2 or 3 for Tiny and Huge. Our choices: Huge takes Large's; Tiny takes Small's, with drop path 0.1 and
0.2, half of Small's, because it needs the least of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from patchscale.config import ModelConfig, RunConfig, TrainingConfig
from patchscale.errors import UserError
from patchscale.recipes.imagenet import imagenet, released_training, variant


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings in which stages and sizes differ, as the paper's tables have them."""

    base_lr: float
    weight_decay: float
    epochs: int
    beta2: float = 0.999
    batch_size: int
    warmup_epochs: int
    drop_path: float
    layer_decay: float | None = None
    finetune: bool = False
    """RandAugment and label smoothing 0.1, instead of 3-Augment and repeated augmentation."""

    def data(self) -> Any:
        """Augmentation; no random erasing in any stage."""
        if self.finetune:
            return imagenet(augment="rand_augment")
        return imagenet(augment="three_augment", repeated_augment=3)

    def training(self) -> TrainingConfig:
        """AdamW; the learning rate for this batch."""
        return released_training(
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            batch_size=self.batch_size,
            learning_rate=self.base_lr * self.batch_size / 512,
            weight_decay=self.weight_decay,
            betas=(0.9, self.beta2),
            layer_decay=self.layer_decay,
            label_smoothing=0.1 if self.finetune else 0.0,
        )


def _pretrain(**settings: Any) -> Stage:
    return Stage(base_lr=5e-4, weight_decay=0.05, batch_size=1024, warmup_epochs=5, **settings)


def _pretrain_large(**settings: Any) -> Stage:
    return Stage(weight_decay=0.3, batch_size=4096, warmup_epochs=20, beta2=0.95, **settings)


def _finetune(**settings: Any) -> Stage:
    return Stage(weight_decay=0.1, batch_size=512, warmup_epochs=5, finetune=True, **settings)


_STAGE_1 = _pretrain(epochs=300, drop_path=0.1)
_LARGE = (
    _pretrain_large(base_lr=2e-4, epochs=200, drop_path=0.2),
    _pretrain_large(base_lr=8e-4, epochs=50, drop_path=0.4, layer_decay=0.9),
    _finetune(base_lr=2e-5, epochs=50, drop_path=0.6, beta2=0.95, layer_decay=0.95),
)
STAGES: dict[str, tuple[Stage, Stage, Stage]] = {
    size: (
        _STAGE_1,
        _pretrain(epochs=100, drop_path=intermediate),
        _finetune(base_lr=1e-5, epochs=20, drop_path=last),
    )
    for size, intermediate, last in (("tiny", 0.1, 0.2), ("small", 0.2, 0.4), ("base", 0.4, 0.6))
} | {"large": _LARGE, "huge": _LARGE}

PIXELS = (128, 224, 224)
"""Image side of the stages on the way to 224 px."""


def adventurer(size: str = "base", stage: int = 1, *, patch_size: int = 16, img_size: int | None = None) -> RunConfig:
    """One stage. Stages 2 and 3 start from the weights of the one before: training.init_from=FILE, or a study."""
    its = STAGES[size][stage - 1]
    return RunConfig(
        recipe=f"adventurer-{size}-stage{stage}",
        model=ModelConfig(
            name=f"adventurer_{size}",
            patch_size=patch_size,
            img_size=img_size or PIXELS[stage - 1],
            drop_path_rate=its.drop_path,
        ),
        data=its.data(),
        training=its.training(),
    )


def adventurer_stages(size: str = "base", *, patch_size: int = 16, img_size: int = 224) -> dict[str, Any]:
    """The study of all stages on the way to `img_size` (64, 128 or 224 px), as a study file would have it.

    Your folder goes into its `base`, as data.root. Raises `UserError` for another size.
    """
    sides = {64: {1: 64}, 128: {1: 128, 3: 128}, 224: {1: 128, 2: 224, 3: 224}}.get(img_size)
    if sides is None:
        raise UserError(f"img_size={img_size}: the published stages lead to 64, 128 or 224 px")
    return {
        "study": f"adventurer-{size}-p{patch_size}-r{img_size}",
        "base": {"model": {"patch_size": patch_size}},
        "stages": [{"recipe": f"adventurer-{size}-stage{stage}", "img_size": side} for stage, side in sides.items()],
    }


_TOP1 = {  # at the end of all stages, patch 16, 8, 4, 2, 1; Tables 1 and 4
    "tiny": {128: "72.6, 78.5, 80.4, 80.6, 80.7", 224: "78.2, 80.9, 81.3, 81.7, 81.9"},
    "small": {128: "77.6, 80.5, 80.9, 81.2, 81.4", 224: "81.8, 83.0, 83.5, 83.7, 83.8"},
    "base": {128: "79.0, 81.5, 81.8, 82.2, 82.4", 224: "82.6, 83.9, 84.3, 84.5, 84.6"},
    "large": {128: "79.8, 82.2, 82.6, 82.9, 83.1"},
    "huge": {},
}
_TOP1_AT_64 = {  # of stage 1 alone
    "tiny": "77.4 % with patch 1 (README of the released code)",
    "small": "80.5 % with patch 1 (README of the released code)",
    "base": "69.2, 77.2, 80.0, 80.5, 80.9 % with patch 16, 8, 4, 2, 1 (arXiv 2502.03738, Table 1)",
}
_A100_HOURS = {
    "tiny": (5.24, 5.66, 1.13),
    "small": (19.4, 20.3, 4.06),
    "base": (42.5, 43.9, 8.78),
    "large": (99.3, 76.4, 76.4),
    "huge": (205, 157, 157),
}


def _expected(size: str, stage: int) -> str:
    if stage == 1:
        at_64 = _TOP1_AT_64.get(size)
        return "not published at 128 px" + (f"; at 64 px top1 {at_64}" if at_64 else "")
    if stage == 2 or not _TOP1[size]:
        return "not published"
    by_size = "; ".join(f"{top1} % at {px} px" for px, top1 in _TOP1[size].items())
    large = "; 83.4 % at 224 px with patch 16 (README of Adventurer)" if size == "large" else ""
    return f"after all stages top1 {by_size}, with patch 16, 8, 4, 2, 1 (arXiv 2502.03738, Table 4){large}"


def _about(size: str, stage: int) -> str:
    its = STAGES[size][stage - 1]
    first = "" if stage == 1 else "from the stage before, "
    return f"Adventurer-{size.capitalize()}, stage {stage}: {first}{its.epochs} epochs at {PIXELS[stage - 1]} px"


ADVENTURER: dict[str, Callable[[], RunConfig]] = {
    f"adventurer-{size}-stage{stage}": variant(
        adventurer,
        size,
        stage,
        about=_about(size, stage),
        expected=_expected(size, stage),
        a100_hours=_A100_HOURS[size][stage - 1],
        from_weights=stage > 1,
    )
    for size in STAGES
    for stage in (1, 2, 3)
}
