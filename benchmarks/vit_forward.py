"""Our ViT against timm's, forward pass: the same sizes and weights must take the same time.

    python benchmarks/vit_forward.py [--batch-size 8] [--repetitions 15] [--output FILE]

`create_model("vit_tiny", patch_size=16, img_size=224)` and timm's `vit_tiny_patch16_224` take turns in one process,
after a check that with the same weights they give the same logits. The aim is a paired ratio within 3 % of 1.
"""

import timm
import torch

from common import begin, finish, numbers, options_parser, words
from patchscale.measurements.paired import alternate
from patchscale.models.registry import create_model

TARGET = 0.03


def main() -> None:
    """Check, time, print, write."""
    parser = options_parser(__doc__, warm_up=3, repetitions=15)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    device, setting = begin(options)

    ours = create_model("vit_tiny", patch_size=16, img_size=224, num_classes=1000).to(device).eval()
    timms = timm.create_model("vit_tiny_patch16_224", pretrained=False).to(device).eval()
    timms.load_state_dict(ours.state_dict())
    images = torch.randn(options.batch_size, 3, 224, 224, device=device)
    with torch.inference_mode():
        if not torch.equal(ours(images), timms(images)):
            raise SystemExit("the models disagree with the same weights")
        times = alternate(
            {"ours": lambda: ours(images), "timm": lambda: timms(images)},
            device=device,
            warm_up=options.warm_up,
            repetitions=options.repetitions,
        )
    ratio = times.ratio("ours", "timm")
    met = abs(ratio.median - 1) <= TARGET
    print(f"same logits with the same weights; ours {words(times.time_s('ours'))} s a batch of {options.batch_size}")
    print(
        f"time, ours / timm: {words(ratio, 4)}; the aim, within {100 * TARGET:.0f} %, is {'met' if met else 'missed'}"
    )
    finish(
        options,
        setting | {"precision": "fp32"},
        time_s={name: numbers(times.time_s(name)) for name in ("ours", "timm")},
        time_ratio={"ours / timm": numbers(ratio)},
        target=TARGET,
        target_met=met,
    )


if __name__ == "__main__":
    main()
