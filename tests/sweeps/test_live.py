"""What is told of runs under way."""

import os
import time

import pytest

from patchscale.runs.record import RunDirectory
from patchscale.sweeps.live import snapshot


def test_speed_and_time_left_need_no_clock_but_that_of_the_files(tiny, tmp_path):
    """The machine of the run, whose clock is years behind, began 10 seconds ago at half of its 100 steps."""
    (config,) = tiny(steps=100).configs
    run = RunDirectory.create(tmp_path, "tiny", config)
    attempt = {"started_at": "2020-01-01T00:00:00+00:00", "first_step": 50}
    with run.lock():
        run.write_status("running", step=75, steps=100)
        run.write_json("environment.json", {"attempts": [attempt]})
        then = time.time() - 10
        os.utime(run.claims_path / "000001.json", (then, then))
        (live,) = snapshot(tmp_path).running
        assert live.left_s == pytest.approx(10, rel=0.3)
        assert live.images_per_s == pytest.approx(25 * config.training.batch_size / 10, rel=0.3)
        before = then - 100  # of the attempt before: this one is being set up
        os.utime(run.path / "environment.json", (before, before))
        (live,) = snapshot(tmp_path).running
        assert live.left_s is None
