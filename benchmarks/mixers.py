"""Attention against the state-space scan: training time of two whole models by token count, as a ratio.

    python benchmarks/mixers.py [--models vit_nano adventurer_nano] [--img-size 48] [--patch-sizes 24 12 6 4 3]

Both models are built and timed in one process, alternating after every repetition, so that what else the machine does
falls on both. Printed: median and spread (25 to 75 %) of the paired ratio, first model over second; above 1 the second
is faster. One training step is forward, cross-entropy, backward. JSON goes to --output.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from patchscale.models.registry import create_model

WARM_UP, REPETITIONS = 3, 15


def main() -> None:
    """Time, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=2, default=["vit_nano", "adventurer_nano"])
    parser.add_argument("--img-size", type=int, default=48)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[24, 12, 6, 4, 3, 2])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    setting = {
        "models": options.models,
        "img_size": options.img_size,
        "batch_size": options.batch_size,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "precision": options.precision,
        "threads": options.threads,
        "torch": torch.__version__,
        "warm_up": WARM_UP,
        "repetitions": REPETITIONS,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(f"{'patch':>5} {'tokens':>6} {'first, ms':>10} {'second, ms':>11} {'ratio':>6}  25-75 %")
    rows = []
    for patch_size in options.patch_sizes:
        rows.append(compare(patch_size, options))
        row = rows[-1]
        print(
            f"{patch_size:>5} {row['tokens']:>6} {1e3 * row['step_time_s'][0]:>10.1f} "
            f"{1e3 * row['step_time_s'][1]:>11.1f} {row['ratio']:>6.2f}  {row['ratio_25']:.2f}-{row['ratio_75']:.2f}"
        )
    if options.output:
        options.output.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")


def compare(patch_size: int, options: argparse.Namespace) -> dict:
    """Paired times of both models at one patch size."""
    torch.manual_seed(0)
    steps = [training_step(name, patch_size, options) for name in options.models]
    times: list[list[float]] = [[], []]
    for repetition in range(WARM_UP + REPETITIONS):
        for which, step in enumerate(steps):
            elapsed = timed(step, options.device)
            if repetition >= WARM_UP:
                times[which].append(elapsed)
    ratios = [first / second for first, second in zip(*times, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "patch_size": patch_size,
        "tokens": (options.img_size // patch_size) ** 2,
        "step_time_s": [statistics.median(series) for series in times],
        "ratio": median,
        "ratio_25": low,
        "ratio_75": high,
    }


def training_step(name: str, patch_size: int, options: argparse.Namespace) -> Callable[[], None]:
    """A function that does one training step of a new model on random images."""
    model = create_model(name, patch_size=patch_size, img_size=options.img_size, num_classes=10).to(options.device)
    images = torch.randn(options.batch_size, 3, options.img_size, options.img_size, device=options.device)
    labels = torch.randint(10, (options.batch_size,), device=options.device)
    autocast = torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.precision == "bf16")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast:
            loss = cross_entropy(model(images), labels)
        loss.backward()

    return step


def timed(step: Callable[[], None], device: str) -> float:
    """Seconds of one call, with the device idle before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
