"""A study that is disturbed: processes of every kind are killed at random moments until all its runs are done.

What is killed, and when, is drawn from a seed and printed, line by line: the kill log.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tests.pausing import go_on, pause

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.study import Study, load_study

MEASURED = ("wall_time_s", "train_time_s", "images_per_s", "train_images_per_s", "peak_memory_bytes")
"""What differs between two runs of one computation."""

STUDY = """
study: killed
base:
  model: {{name: vit_test, img_size: 16, drop_path_rate: 0.3}}
  data: {{name: scenes, train_images: 32, val_images: 8, test_images: 8, augment: crop}}
  training: {{steps: {steps}, batch_size: 4, num_validations: 2, ema_decay: 0.9}}
  execution: {{device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_s: 0.1}}
grid: {{patch_size: [16, 8, 4, 2], seed: {seeds}}}
resources: {{cpus: 1, time_h: 1}}
"""


class Disturbed:
    """A sweep by the command, started again when it has died, and what is done to it and its runs."""

    def __init__(self, folder: Path, *, runs: int, steps: int, seed: int, arguments: tuple[str, ...]) -> None:
        self.folder, self.arguments, self.steps = folder, arguments, steps
        self.environment = dict(os.environ)
        self.draw = random.Random(seed)
        self.file = folder / "study.yaml"
        self.file.write_text(STUDY.format(steps=steps, seeds=list(range(runs // 4))))
        self.study: Study = load_study(self.file)
        self.runs = [RunDirectory(folder / "runs" / "killed" / config.run_id) for config in self.study.configs]
        self.log: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.actions: dict[str, Callable[[], str | None]] = {"worker": self.kill_worker, "sweep": self.kill_sweep}

    def start_sweep(self) -> None:
        """Start the sweep if it does not run; raises `AssertionError` if it ended with a mistake."""
        if self.process is not None and self.process.poll() is None:
            return
        sweep = ["sweep", str(self.file), "--runs-root", str(self.folder / "runs"), "--wait", *self.arguments]
        command = [sys.executable, "-m", "patchscale", *sweep]
        with (self.folder / "sweep.txt").open("ab") as output:
            self.process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)

    def kill_sweep(self) -> str | None:
        """kill -9 of the sweep's process."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.kill()
        self.process.wait()
        return f"process {self.process.pid}"

    def kill_worker(self) -> str | None:
        """kill -9 of the process of one run, None if none is running."""
        for run in self.draw.sample(self.runs, len(self.runs)):
            owner = run.owner()
            if owner is not None and run.result() is None:
                try:
                    os.kill(owner.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                return f"{run.path.name}, process {owner.pid}, step {(run.read_json('status.json') or {}).get('step')}"
        return None

    def done(self) -> int:
        """Runs with a result."""
        return sum((run.path / "result.json").exists() for run in self.runs)

    def carry_out(self, kills: int, *, timeout_s: float) -> None:
        """Start the sweep, kill `kills` times at random moments, spread over the study; then let it end."""
        end = time.monotonic() + timeout_s
        guards = self.runs[-2:]
        for run in guards:  # so that the study cannot end before all kills are done
            pause(run.path, after_step=self.steps - 1)
        names = [name for number in range(kills) for name in [list(self.actions)[number % len(self.actions)]]]
        self.draw.shuffle(names)
        for number, name in enumerate(names):
            after = self.draw.uniform(0, len(self.runs) * (number + 0.5) / kills)
            self.start_sweep()
            while True:
                assert time.monotonic() < end, self.said()
                self.start_sweep()
                if self.done() >= min(after, len(self.runs) - 6) and any(run.is_locked() for run in self.runs):
                    time.sleep(self.draw.uniform(0, 1.5))
                    what = self.actions[name]()
                    if what is not None:
                        break
                assert self.done() < len(self.runs), f"all runs are done after {number} of {kills} kills"
                time.sleep(0.05)
            self.note(f"kill {number + 1} of {kills}: {name}: {what}; {self.done()} of {len(self.runs)} runs done")
        for run in guards:
            go_on(run.path)
        while self.done() < len(self.runs) or self.process is None or self.process.poll() != 0:
            assert time.monotonic() < end, self.said()
            self.start_sweep()
            time.sleep(0.1)
        self.note("all runs are done")

    def note(self, text: str) -> None:
        """One line of the kill log."""
        line = f"{datetime.now():%H:%M:%S} {text}"
        self.log.append(line)
        print(line, flush=True)

    def wait_until_said(self, words: str, *, timeout_s: float = 60) -> None:
        """Return when a sweep has printed `words`."""
        end = time.monotonic() + timeout_s
        while words not in (self.folder / "sweep.txt").read_text():
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def said(self) -> str:
        """The end of what the sweeps printed."""
        return "timed out; the sweeps said: " + (self.folder / "sweep.txt").read_text()[-3000:]

    def close(self) -> None:
        """End what is left."""
        self.kill_sweep()


def assert_done_once_and_equal(disturbed: Disturbed, undisturbed: Path) -> None:
    """Every run has one result, no work was done after it or twice, and all is as in the undisturbed study."""
    for run in disturbed.runs:
        status, attempts = run.read_json("status.json"), run.read_json("environment.json")["attempts"]
        assert status["state"] == "done"
        written = (run.path / "result.json").stat().st_mtime
        assert all(datetime.fromisoformat(attempt["started_at"]).timestamp() <= written for attempt in attempts)
        steps = [row["step"] for row in _rows(run) if row["kind"] == "train"]
        assert steps == list(range(1, run.config().training.steps + 1)), "no step is lost or logged twice"
        assert outcome(run) == outcome(RunDirectory(undisturbed / run.path.name)), run.path.name
        claims = sorted(path.name for path in run.claims_path.glob("*.json"))
        assert len(claims) >= len(attempts)


def outcome(run: RunDirectory) -> dict[str, object]:
    """All that two runs of one computation have in common, bit for bit."""
    result = run.result()
    assert result is not None
    weights = {path.name: path.read_bytes() for path in sorted(run.checkpoint_dir.glob("*.safetensors"))}
    rows = [{name: value for name, value in row.items() if name not in MEASURED} for row in _rows(run)]
    return {
        "result": {name: value for name, value in result.items() if name not in MEASURED},
        "weights": weights,
        "metrics": rows,
    }


def _rows(run: RunDirectory) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
