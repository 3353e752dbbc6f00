"""Attention against the state-space scan: training time of two whole models by token count, as a ratio.

    python benchmarks/attention_vs_scan.py [--models vit_nano adventurer_nano] [--img-size 48] [--patch-sizes 24 12 6 4]

Both models take turns in one process, so that what else the machine does falls on both. Printed: median and spread (25
to 75 %) of the paired ratio, first model over second; above 1 the second is faster. One training step is forward,
cross-entropy, backward and AdamW. `patchscale bench --crossover` searches for the ratio of 1.
"""

from common import begin, finish, numbers, options_parser
from patchscale.measurements.paired import alternate
from patchscale.measurements.step import StepConfig, build_step


def main() -> None:
    """Time, print a table, write JSON if asked."""
    parser = options_parser(__doc__, warm_up=3, repetitions=15)
    parser.add_argument("--models", nargs=2, default=["vit_nano", "adventurer_nano"])
    parser.add_argument("--img-size", type=int, default=48)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=[24, 12, 6, 4, 3, 2])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    device, setting = begin(options)

    print(f"{'patch':>5} {'tokens':>6} {'first, ms':>10} {'second, ms':>11} {'ratio':>6}  25-75 %")
    rows = []
    for patch_size in options.patch_sizes:
        configs = [
            StepConfig(
                model=name,
                patch_size=patch_size,
                img_size=options.img_size,
                batch_size=options.batch_size,
                precision=options.precision,
                device=device.type,
                num_classes=10,
            )
            for name in options.models
        ]
        steps = {name: build_step(config, device)[1] for name, config in zip(("first", "second"), configs, strict=True)}
        times = alternate(steps, device=device, warm_up=options.warm_up, repetitions=options.repetitions)
        ratio, first, second = times.ratio("first", "second"), times.time_s("first"), times.time_s("second")
        tokens = configs[0].cost().tokens
        rows.append(
            {
                "patch_size": patch_size,
                "tokens": tokens,
                "step_time_s": [numbers(first), numbers(second)],
                "ratio": numbers(ratio),
            }
        )
        print(
            f"{patch_size:>5} {tokens:>6} {1e3 * first.median:>10.1f} {1e3 * second.median:>11.1f} "
            f"{ratio.median:>6.2f}  {ratio.low:.2f}-{ratio.high:.2f}"
        )
    finish(options, setting, rows=rows)


if __name__ == "__main__":
    main()
