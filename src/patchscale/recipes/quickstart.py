"""The first command a newcomer runs: both architectures at six patch sizes on composed scenes, in minutes on a CPU."""

from typing import Any

from patchscale.config import DataConfig, ModelConfig, RunConfig, TrainingConfig


def scenes_segmentation() -> RunConfig:
    """Decoder-free segmentation of composed scenes at 48 px: a small real task on which finer patches show their worth.

    Command: patchscale train --recipe scenes-segmentation [--patch-size 6]
    Expected: test loss 0.549, mIoU 16.8% (seed 0, measured here on 2026-11-22); docs/log.md has the whole curve.
    Cost: half a minute on one CPU core, 0.7 GB.
    """
    return RunConfig(
        recipe="scenes-segmentation",
        task="segmentation",
        model=ModelConfig(name="vit_nano", patch_size=8, img_size=48),
        data=DataConfig(name="scenes", augment="flip", train_images=4096, val_images=256, test_images=1024),
        training=TrainingConfig(steps=300, batch_size=32, learning_rate=2e-3, warmup_fraction=0.1, num_validations=2),
    )


def quickstart_study() -> dict[str, Any]:
    """The study of `patchscale quickstart`, as a study file would have it: 12 runs, the longest first.

    Shortest first would leave one core idle during the last run, a third of the whole time.
    """
    return {
        "study": "quickstart",
        "recipe": "scenes-segmentation",
        "grid": {"patch_size": [4, 6, 8, 12, 16, 24], "model": ["adventurer_nano", "vit_nano"]},
        "order": "given",
    }
