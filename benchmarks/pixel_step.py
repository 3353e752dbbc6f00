"""One training step in which every pixel is a token, on a CPU: 224 x 224 px, patch 1, 50,176 tokens, batch 1.

    python benchmarks/pixel_step.py [--model adventurer_tiny] [--img-size 224] [--patch-size 1] [--output FILE]

A whole step (forward, loss, backward, AdamW), the first of a fresh process, with and without activation checkpointing:
its time, and the most memory the process had resident. The aim is at most 12 GiB.
"""

from common import begin, finish, options_parser
from patchscale.measurements.step import StepConfig, measure_step

TARGET_GIB = 12


def main() -> None:
    """Measure both, print, write."""
    parser = options_parser(__doc__, warm_up=0, repetitions=1)
    parser.add_argument("--model", default="adventurer_tiny")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    device, setting = begin(options)

    rows = []
    for checkpointing in (False, True):
        config = StepConfig(
            model=options.model,
            patch_size=options.patch_size,
            img_size=options.img_size,
            batch_size=options.batch_size,
            precision=options.precision,
            device=device.type,
            checkpointing=checkpointing,
        )
        row = measure_step(
            config, warm_up=options.warm_up, repetitions=options.repetitions, num_threads=options.threads
        )
        rows.append(row)
        how = "with" if checkpointing else "without"
        if row["status"] != "ok":
            print(f"{how} checkpointing: {row['status']}: {row['message']}")
            continue
        peak = row["process_peak_bytes"] or row["peak_memory_bytes"]
        print(
            f"{how} checkpointing: {row['tokens']:,} tokens, {row['step_time_s']:.3g} s, "
            f"{peak / 2**30:.2f} GiB at most (the aim is {TARGET_GIB})"
        )
    finish(options, setting, rows=rows, target_peak_gib=TARGET_GIB)


if __name__ == "__main__":
    main()
