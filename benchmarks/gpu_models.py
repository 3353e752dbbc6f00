"""Training throughput, peak memory and MFU of whole models on a CUDA device, from 196 to 50,176 tokens an image.

    python benchmarks/gpu_models.py [--part main|more] [--output FILE] [--time-limit-s 240] [--device cuda] [--tiny]

Adventurer-Base and ViT-Base at 224 px in bf16, every patch size with as many images as make 50,176 tokens a step, each
configuration in a process of its own; where that runs out of memory the batch is halved. The main part is those, and
activation checkpointing at small patches; `more` is torch.compile, larger batches, and the plain torch scan. Everything
done is in the file at any time.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from common import begin, finish, options_parser
from patchscale.measurements.step import StepConfig, measure_step

TOKENS_PER_STEP = 50_176
EAGER_LIMIT_S, COMPILE_LIMIT_S = 60, 120
MOST_HALVINGS = 3


def main() -> None:
    """Measure in the order of value until the time is up; print one table."""
    parser = options_parser(__doc__, warm_up=3, repetitions=8)
    parser.set_defaults(device="cuda", threads=8)
    parser.add_argument("--part", choices=["main", "more"], default="main")
    parser.add_argument("--time-limit-s", type=float, default=240)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device, setting = begin(options)
    setting |= {"tokens_per_step": TOKENS_PER_STEP}

    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    print(HEADER)
    todo = [(config, 0) for config in (tiny_configs() if options.tiny else configs(options.part))]
    while todo:
        config, halvings = todo.pop(0)
        config = replace(config, device=device.type)
        seconds_left = options.time_limit_s - (time.monotonic() - started)
        limit_s = min(COMPILE_LIMIT_S if config.compile else EAGER_LIMIT_S, seconds_left)
        if limit_s < 10:
            left_out.append(label(config))
            continue
        row = measure_step(
            config,
            warm_up=options.warm_up,
            repetitions=options.repetitions,
            time_limit_s=limit_s,
            num_threads=options.threads,
        )
        rows.append(row)
        print(line(row), flush=True)
        if row["status"] == "out_of_memory" and config.batch_size > 1 and halvings < MOST_HALVINGS:
            todo.insert(0, (replace(config, batch_size=config.batch_size // 2), halvings + 1))
        finish(options, setting, rows=rows, left_out=left_out)
    if left_out:
        print(f"no time left for: {'; '.join(left_out)}")
    finish(options, setting, rows=rows, left_out=left_out)
    if not any(row["status"] == "ok" for row in rows):
        raise SystemExit("nothing could be measured")


def configs(part: str) -> Iterator[StepConfig]:
    """The most telling first."""
    base = partial(StepConfig, img_size=224, precision="bf16")

    def equal_tokens(model: str, patch_size: int, **more: Any) -> StepConfig:
        return base(model=model, patch_size=patch_size, batch_size=TOKENS_PER_STEP * patch_size**2 // 224**2, **more)

    adventurer, vit = partial(equal_tokens, "adventurer_base"), partial(equal_tokens, "vit_base")
    if part == "main":
        yield from (adventurer(patch) for patch in (1, 16, 4, 8, 2))
        yield from (vit(patch) for patch in (16, 8, 4, 2))
        yield vit(1, train=False)
        yield from (adventurer(patch, checkpointing=True) for patch in (1, 2))
        yield vit(1)
        return
    yield adventurer(4, compile=True)
    yield vit(4, compile=True)
    yield adventurer(1, compile=True)
    yield base(model="adventurer_base", patch_size=1, batch_size=8, checkpointing=True)
    yield from (adventurer(patch, ssd_backend="chunked") for patch in (1, 16))
    yield vit(1, checkpointing=True)
    yield adventurer(1, train=False)
    yield adventurer(16, compile=True)
    yield vit(16, compile=True)


def tiny_configs() -> Iterator[StepConfig]:
    """A few seconds on a CPU."""
    for model in ("adventurer_test", "vit_test"):
        yield StepConfig(model=model, patch_size=8, img_size=32, batch_size=2, precision="bf16", num_classes=10)
    yield StepConfig(model="vit_test", patch_size=8, img_size=32, batch_size=2**45)


HEADER = (
    f"{'model':>16} {'patch':>5} {'tokens':>6} {'batch':>5} {'how':>24} {'ms/step':>9} {'25-75 %':>15} "
    f"{'images/s':>9} {'tokens/s':>9} {'GiB':>6} {'MFU':>6}"
)


def how(config: dict[str, Any]) -> str:
    """What sets it apart."""
    parts = ["train" if config["train"] else "infer"]
    parts += [name for name in ("compile", "checkpointing") if config[name]]
    parts += [config["ssd_backend"]] if config["ssd_backend"] not in (None, "auto", "triton") else []
    return " ".join(parts)


def label(config: StepConfig) -> str:
    """A configuration that was not measured."""
    return f"{config.model} patch {config.patch_size} {how(vars(config))}"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    start = f"{row['model']:>16} {row['patch_size']:>5} {row['tokens']:>6} {row['batch_size']:>5} {how(row):>24} "
    if row["status"] != "ok":
        return f"{start}{row['status']}: {row['message'][:160]}"
    spread = f"{1e3 * row['step_time_25_s']:.1f}-{1e3 * row['step_time_75_s']:.1f}"
    return (
        f"{start}{1e3 * row['step_time_s']:>9.1f} {spread:>15} {row['images_per_s']:>9.1f} "
        f"{row['tokens_per_s']:>9.0f} {row['peak_memory_bytes'] / 2**30:>6.2f} "
        f"{'' if row['mfu'] is None else format(row['mfu'], '.1%'):>6}"
    )


if __name__ == "__main__":
    main()
