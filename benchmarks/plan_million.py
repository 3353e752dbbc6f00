"""How long it takes to price and to plan over a million configurations: `python benchmarks/plan_million.py`.

Times are printed, nothing is asserted; run it on an idle core.
"""

import time

import numpy as np

import patchscale as ps
from patchscale.planner.prices import price
from patchscale.planner.space import free_vits

BUDGETS = {"train_gpu_hours": 200, "latency_s": 0.01, "peak_memory_bytes": 80e9}


def main() -> None:
    """Price once, plan five times with three budgets and a joint law with 1000 draws."""
    table = ps.published("patchification/imagenet").query("architecture == 'adventurer'")
    fit = ps.fit_law(table, form="relative-patch", target="error")
    space = ps.Space(
        shapes=free_vits(range(256, 1024, 64), range(4, 33, 2)),
        img_sizes=[64, 96, 128, 160, 192, 224, 256, 320, 384],
        images_seen=np.geomspace(1e6, 1e9, 60),
    )
    start = time.perf_counter()
    priced = price(space, device="h100")
    mebibytes = priced.memory_usage().sum() / 2**20
    print(f"{len(priced):,} configurations priced in {time.perf_counter() - start:.2f} s, {mebibytes:.0f} MiB")
    for _ in range(5):
        start = time.perf_counter()
        plan = ps.plan(fit, priced, budgets=BUDGETS)
        print(
            f"planned in {time.perf_counter() - start:.2f} s, {len(plan.ties)} tied, {len(plan.frontier)} on frontiers"
        )
    print(plan)


if __name__ == "__main__":
    main()
