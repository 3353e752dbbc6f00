"""DeiT (arXiv 2012.12877) at any patch size: one run from scratch, as in the patch scaling paper (arXiv 2502.03738).

The paper gives AdamW, learning rate 1e-3, weight decay 0.05, 300 epochs and batch 1,024 (section 4.1), and no more;
what it does not say is DeiT's own (defaults of facebookresearch/deit, main.py).
"""

from collections.abc import Callable

from patchscale.config import ModelConfig, RunConfig
from patchscale.recipes.imagenet import imagenet, released_training, variant


def deit(size: str = "base", img_size: int = 224, *, patch_size: int = 16) -> RunConfig:
    """DeiT-Tiny, -Small, -Base for 300 epochs at `img_size` px; the same at every patch size."""
    return RunConfig(
        recipe=f"deit-{size}-{img_size}",
        model=ModelConfig(name=f"deit_{size}", patch_size=patch_size, img_size=img_size, drop_path_rate=0.1),
        data=imagenet(augment="rand_augment", random_erasing=0.25, repeated_augment=3),
        training=released_training(
            epochs=300,
            warmup_epochs=5,
            batch_size=1024,
            learning_rate=1e-3,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            label_smoothing=0.1,
        ),
    )


_EXPECTED = {
    64: "top1 68.2, 76.9, 80.1, 80.8, 81.3 % with patch 16, 8, 4, 2, 1 (arXiv 2502.03738, Table 1)",
    128: "top1 78.1, 81.0, 82.3, 82.9 % with patch 16, 8, 4, 2 (arXiv 2502.03738, Table 1)",
    224: "top1 81.8, 83.5 % with patch 16, 8 (arXiv 2502.03738, section 1)",
}
_A100_HOURS = {64: 9.26, 128: 35.8, 224: 111}

DEIT: dict[str, Callable[[], RunConfig]] = {
    f"deit-base-{px}": variant(
        deit, "base", px, about=f"DeiT-Base, 300 epochs at {px} px", expected=_EXPECTED[px], a100_hours=_A100_HOURS[px]
    )
    for px in _EXPECTED
}
