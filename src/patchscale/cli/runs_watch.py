"""`patchscale runs --watch`: how a folder of runs gets on, again and again."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchscale.sweeps.live import LiveRun, Snapshot


def watch_runs(folder: Path, *, every_s: float, device: str | None, early_fit: bool, json: bool) -> None:
    """Print a snapshot every `every_s` seconds, in place on a terminal, until all runs have ended."""
    from patchscale.cli.early_fit import EarlyFit
    from patchscale.sweeps.live import snapshot

    fit = EarlyFit(folder)
    fits: list[str] = []
    done = -1
    in_place = sys.stdout.isatty() and not json
    while True:
        seen = snapshot(folder, device=device)
        over = seen.finished == seen.total
        if early_fit and seen.states["done"] != done and (lines := fit.again(last=over)) is not None:
            done, fits = seen.states["done"], lines
        if json:
            _print_json(seen, fits)
        else:
            print(("\033[H\033[J" if in_place else "") + "\n".join([*_lines(seen), *fits]), flush=True)
        if over:
            return
        try:
            time.sleep(every_s)
        except KeyboardInterrupt:
            return


def _lines(seen: "Snapshot") -> list[str]:
    from patchscale.cli.sweep_progress import label
    from patchscale.reports.words import duration, percent, plural

    states = ", ".join(f"{number} {state}" for state, number in seen.states.most_common())
    left = "unknown" if seen.left_hours is None else f"{seen.left_hours:.3g}"
    total = "" if seen.left_hours is None else f", {seen.spent_hours + seen.left_hours:.3g} in all"
    lines = [
        f"{plural(seen.total, 'run')}: {states}; {percent(seen.share, 0)} of the work",
        f"device hours: {seen.spent_hours:.3g} used, {left} predicted to come{total}",
    ]
    for run in seen.running:
        speed = "" if run.images_per_s is None else f", {run.images_per_s:.3g} images/s"
        time_left = "" if run.left_s is None else f", about {duration(run.left_s)} left"
        beat = "" if run.beat_age_s is None else f", last sign of life {max(0, run.beat_age_s):.0f} s ago"
        lines.append(f"  {label(run.item)}: {percent(run.share, 0)}{speed}{time_left}; {run.owner}{beat}")
    return [*lines, *(f"  unreadable: {message}" for message in seen.unreadable)]


def _print_json(seen: "Snapshot", fits: list[str]) -> None:
    """One line for each look."""
    import json

    record: dict[str, Any] = {
        "states": dict(seen.states),
        "share": seen.share,
        "device_hours_used": seen.spent_hours,
        "device_hours_left": seen.left_hours,
        "unreadable": list(seen.unreadable),
        "running": [_record(run) for run in seen.running],
        "early_fit": fits,
    }
    print(json.dumps(record), flush=True)


def _record(run: "LiveRun") -> dict[str, Any]:
    return {
        "run_id": run.item.config.run_id,
        "owner": run.owner,
        "beat_age_s": run.beat_age_s,
        "progress": run.share,
        "images_per_s": run.images_per_s,
        "left_s": run.left_s,
    }
