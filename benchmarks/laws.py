"""Speed and accuracy of the laws' fits and of planning: seconds, starts, recovered parameters, the founding table.

    python benchmarks/laws.py [--repetitions 3] [--draws 1000] [--output FILE]

Every line has a value, a target and whether it is met. Times are medians of whole calls of `patchscale.fit_law`, checks
and hold-outs included, and of `patchscale.plan` over configurations that are priced already.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

import patchscale as ps
from common import begin, finish, options_parser
from coverage_designs import Simulated, designs
from patchscale.laws.result import Fit
from patchscale.planner.prices import price
from patchscale.planner.space import free_vits

HOFFMANN = "additive:params_backbone,images_seen"
BUDGETS = {"train_gpu_hours": 2000, "latency_s": 0.05, "peak_memory_bytes": 60e9}


def main() -> None:
    """Measure, print, write."""
    parser = options_parser(__doc__, warm_up=1, repetitions=3)
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws of every timed fit")
    parser.add_argument("--durations", type=int, default=60, help="images seen to plan over; 60 make a million rows")
    options = parser.parse_args()
    _, setting = begin(options, "numpy", "scipy")

    def timed(call: Callable[[], Any]) -> tuple[float, Any]:
        for _ in range(options.warm_up):
            call()
        seconds = []
        for _ in range(options.repetitions):
            started = time.perf_counter()
            answer = call()
            seconds.append(time.perf_counter() - started)
        return float(np.median(seconds)), answer

    founding, hoffmann = founding_table(), hoffmann_table()
    seconds, fit = timed(lambda: ps.fit_law(founding, form="relative-patch", target="error", draws=options.draws))
    lines = [below("joint_fit_40_points_s", seconds, 10)]
    seconds, large = timed(lambda: ps.fit_law(hoffmann, form=HOFFMANN, draws=options.draws))
    lines.append(below("hoffmann_250_points_s", seconds, 20))
    priced = price(million(options.durations), device="h100")
    seconds, _ = timed(lambda: ps.plan(fit, priced, budgets=BUDGETS))
    lines.append(below("plan_priced_s", seconds, 1) | {"configurations": len(priced)})
    lines.append(above("starts_agreeing_founding", fit.starts_agreeing, 0.5))
    lines.append(above("starts_agreeing_hoffmann", large.starts_agreeing, 0.5))
    lines += founding_lines(fit)
    recovered = {}
    for design in designs():
        recovered[design.form] = max(recovered.get(design.form, 0.0), recovery(design))
    lines += [below(f"recovery {form}", error, 1e-3) for form, error in recovered.items()]
    print(pd.DataFrame(lines)[["name", "value", "target", "met"]].to_string(index=False))
    finish(options, setting, lines=lines, met=all(line["met"] for line in lines))


def founding_table() -> pd.DataFrame:
    """The forty runs of Adventurer in complete curves (arXiv 2502.03738, Tables 1 and 4)."""
    table = ps.published("patchification/imagenet").query("architecture == 'adventurer'")
    return table[(table["img_size"] > 64) | (table["model"] == "Adventurer-Base")]


def hoffmann_table() -> pd.DataFrame:
    """250 runs on ten budgets, 25 model sizes each, on Hoffmann's rounded law with 1 % noise."""
    C = np.repeat(np.geomspace(1e18, 1e22, 10), 25)
    N = np.sqrt(C / 6) * np.tile(np.geomspace(1 / 16, 16, 25), 10) / 4
    D = C / (6 * N)
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=len(C)))
    loss = (1.69 + 406.4 * N**-0.34 + 410.7 * D**-0.28) * noise
    return pd.DataFrame({"params_backbone": N, "images_seen": D, "test_loss": loss})


def million(durations: int) -> ps.Space:
    """Plain ViTs of twelve widths and fifteen depths at nine image sizes."""
    return ps.Space(
        shapes=free_vits(range(256, 1024, 64), range(4, 33, 2)),
        img_sizes=[64, 96, 128, 160, 192, 224, 256, 320, 384],
        images_seen=np.geomspace(1e6, 1e9, durations),
    )


def founding_lines(fit: Fit) -> list[dict[str, Any]]:
    """The patch exponent of the founding table, and its smallest patches predicted from the others."""
    a = fit.parameters["a"].value
    held = next(one for one in fit.holdouts if one.column == "patch_size")
    return [
        {"name": "founding_a", "value": a, "target": [1.45, 1.77], "met": 1.45 <= a <= 1.77},
        below("founding_holdout_p1_points", 100 * held.rmse, 0.40),
    ]


def recovery(design: Simulated) -> float:
    """The largest relative error of a parameter fitted to the law without noise."""
    table = replace(design, noise=0.0, curve_noise=0.0).draw(0)
    fit = ps.fit_law(table, form=design.form, groups=[design.group] if design.group else (), draws=40)
    return max(abs(fit.parameters[name].value / value - 1) for name, value in design.truth.items())


def below(name: str, value: float, target: float) -> dict[str, Any]:
    """A line that is met at or below the target."""
    return {"name": name, "value": value, "target": target, "met": bool(value <= target)}


def above(name: str, value: float, target: float) -> dict[str, Any]:
    """A line that is met at or above the target."""
    return {"name": name, "value": value, "target": target, "met": bool(value >= target)}


if __name__ == "__main__":
    main()
