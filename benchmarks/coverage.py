"""How often nominal 95 % intervals hold the truth: parameters, predictions and decisions, by simulation.

    python benchmarks/coverage.py [--simulations 500] [--processes 2] [--designs NAME...] [--output FILE]

Every design of `coverage_designs.py` is simulated, fitted and asked. Fits are those of `patchscale.fit_law` without its
checks and hold-outs: the same search (with fewer scattered starts), the same choice between profile and
bootstrap, the same clusters. Bootstraps have 299 draws instead of 1,000.

Finished simulations are kept in --partial and not repeated, so that a run can be ended and continued. Take another
folder once the laws, the designs or --draws have changed.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import begin, finish, options_parser
from coverage_designs import Simulated, designs
from patchscale.laws.bootstrap import Array, Bootstrap, noise_draws, percentiles
from patchscale.laws.design import Design
from patchscale.laws.forms import law_named
from patchscale.laws.joint import PROFILE_EXPONENTS, PROFILE_POINTS, FitOptions, clusters_of, problem_of
from patchscale.laws.table import target_named
from patchscale.laws.uncertainty import Interval, Profile
from patchscale.laws.varpro import Problem, solve

LEVEL = 0.95
AIM = (0.93, 0.97)
DRAWS = 299
STARTS = 8
CHUNK = 10
"""Simulations between two writes."""


def main() -> None:
    """Simulate what is missing, print a table, write."""
    parser = options_parser(__doc__, warm_up=0, repetitions=1)
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--designs", nargs="*", help="some of them; all if left out")
    parser.add_argument("--partial", type=Path, default=Path("build/coverage"), help="folder of finished simulations")
    parser.add_argument("--time-limit-s", type=float, help="report what there is by then")
    options = parser.parse_args()
    _, setting = begin(options)
    del setting["partial"]
    options.deadline = time.monotonic() + (options.time_limit_s or math.inf)
    known = {design.name: design for design in designs()}
    rows = []
    for name in options.designs or known:
        records = simulated(known[name], options)
        if not records:
            continue
        rows += summary(known[name], records)
        print(pd.DataFrame(row for row in rows if row["design"] == name).to_string(index=False), flush=True)
    finish(options, setting, level=LEVEL, aim=AIM, rows=rows)


def simulated(design: Simulated, options: Any) -> list[dict[str, Any]]:
    """One record per simulation, from the partial file as far as it goes."""
    options.partial.mkdir(parents=True, exist_ok=True)
    path = options.partial / f"{design.name}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {record["number"] for record in records}
    todo = [number for number in range(options.simulations) if number not in done]
    if not todo or time.monotonic() > options.deadline:
        return [record for record in records if record["number"] < options.simulations]
    with path.open("a") as file:
        for record in _in_parallel([(design.name, number, options.draws) for number in todo], options.processes):
            file.write(json.dumps(record) + "\n")
            file.flush()
            records.append(record)
            if time.monotonic() > options.deadline:
                break
    return [record for record in records if record["number"] < options.simulations]


def _in_parallel(jobs: list[tuple[str, int, int]], processes: int) -> Iterator[dict[str, Any]]:
    if processes == 1 or len(jobs) < CHUNK:
        yield from map(simulate, jobs)
        return
    with get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(simulate, jobs, chunksize=CHUNK)


def simulate(job: tuple[str, int, int]) -> dict[str, Any]:
    """One simulation: for every quantity [held, below, above, relative width], and seconds."""
    name, number, draws = job
    design = next(one for one in designs() if one.name == name)
    started = time.perf_counter()
    intervals = asked(design, design.draw(number), draws=draws, seed=number)
    truth = truths(design)
    answers = {
        quantity: [bool(found.low <= truth[quantity] <= found.high), bool(truth[quantity] < found.low)]
        for quantity, found in intervals.items()
    }
    return {"number": number, "seconds": round(time.perf_counter() - started, 3), "held_below": answers}


def truths(design: Simulated) -> dict[str, float]:
    """The true answer to every question."""
    return {
        **design.truth,
        "inside": float(design.value(pd.DataFrame([design.inside]))[0, 0]),
        "outside": float(design.value(pd.DataFrame([design.outside]))[0, 0]),
        "decision": float(design.decide(design.value)[0]),
    }


def asked(design: Simulated, table: pd.DataFrame, *, draws: int, seed: int) -> dict[str, Interval]:
    """The interval of every quantity, by the method that `fit_law` would take."""
    law = law_named(design.form)
    groups = [design.group] if design.group else []
    options = FitOptions(law=law, target=target_named("loss"), groups=tuple(groups))
    places = pd.DataFrame([design.inside, design.outside])
    if law.name == "patch":
        values = table["test_loss"].to_numpy()
        problem = Problem(law, {"patch_size": table["patch_size"].to_numpy()}, values, values)
        return by_profile(design, problem, places, axes=lambda t: {"patch_size": t["patch_size"].to_numpy(float)})
    table = table.sort_values([axis.column for axis in law.axes], kind="stable")
    scaled = Design.of(table, law, groups, [])
    problem = problem_of(table, scaled, options, design.name)
    if problem.num_points <= PROFILE_POINTS and len(law.exponents) <= PROFILE_EXPONENTS:
        return by_profile(design, problem, places, axes=scaled.axes)
    clusters, words = clusters_of(table, options)
    solution = solve(problem, starts=STARTS)
    drawn = Bootstrap.of(problem, solution, clusters=clusters, clustered_by=words, draws=draws, level=LEVEL, seed=seed)
    low, high = percentiles(drawn.draws(scaled.axes(places)), LEVEL)
    decided = percentiles(design.decide(lambda t: drawn.draws(scaled.axes(t))), LEVEL)
    return drawn.intervals() | {
        "inside": Interval(low[0], high[0]),
        "outside": Interval(low[1], high[1]),
        "decision": Interval(*map(float, decided)),
    }


def by_profile(design: Simulated, problem: Problem, places: pd.DataFrame, *, axes: Any) -> dict[str, Interval]:
    """Profiles for parameters and predictions; the decision from draws, as `Fit.draws` makes them."""
    solution = solve(problem, starts=STARTS)
    profile = Profile.of(problem, solution, level=LEVEL)
    exponents, amplitudes = noise_draws(
        problem, solution, variance=profile.noise.variance, dof=profile.noise.dof, draws=1000
    )

    def value(table: pd.DataFrame) -> Array:
        return np.einsum("bmk,bk->bm", problem.law.basis(exponents, axes(table)), amplitudes)

    ends = [profile.prediction_interval(axes(places.iloc[[i]])) for i in range(2)]
    return profile.intervals() | {
        "inside": ends[0],
        "outside": ends[1],
        "decision": Interval(*map(float, percentiles(design.decide(value), LEVEL))),
    }


def summary(design: Simulated, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per quantity: the share that held, and of the misses those with the truth below the interval."""
    rows = []
    for quantity in records[0]["held_below"]:
        answers = np.array([record["held_below"][quantity] for record in records], float)
        share = float(answers[:, 0].mean())
        chance = 1.96 * np.sqrt(share * (1 - share) / len(answers))
        rows.append(
            {
                "design": design.name,
                "form": design.form,
                "points": len(design.runs),
                "quantity": quantity,
                "coverage": round(share, 4),
                "chance": round(float(chance), 4),
                "truth_below": round(float(answers[:, 1].mean()), 4),
                "simulations": len(answers),
                "in_aim": bool(AIM[0] - chance <= share <= AIM[1] + chance),
                "seconds_each": round(float(np.mean([record["seconds"] for record in records])), 3),
            }
        )
    return rows


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
