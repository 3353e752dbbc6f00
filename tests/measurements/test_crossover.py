"""The search for the crossing, on machines whose speed is known, and once on this one."""

from functools import partial

import pytest

from patchscale.measurements.crossover import CannotTry, Trial, at_side, compare_models, find_crossover
from patchscale.measurements.step import StepConfig


def machine(crossing):
    """Attention takes n^2 microseconds, the scan `crossing` * n: they meet at `crossing` tokens. Nobody waits."""

    def compare(side, seconds_left):
        n = side * side
        ratio = n / crossing
        return Trial(
            tokens=n,
            img_size=side,
            patch_size=1,
            first_s=1e-6 * n * n,
            second_s=1e-6 * n * crossing,
            ratio=ratio,
            ratio_25=0.9 * ratio,
            ratio_75=1.1 * ratio,
            spent_s=1e-6 * n * n,
        )

    return compare


search = partial(find_crossover, max_tokens=50_176, time_limit_s=1e9)


@pytest.mark.parametrize("crossing", [20, 100, 784, 3000, 12_345, 49_000])
def test_the_bracket_holds_the_crossing_and_is_narrow(crossing):
    found = search(machine(crossing))
    assert found.last_first <= crossing < found.first_second
    sides = found.last_first**0.5, found.first_second**0.5
    assert found.first_second / found.last_first <= 1.1 or sides[1] - sides[0] == 1
    assert len(found.trials) < 20
    assert f"between {found.last_first:,} tokens" in found.sentence("vit", "adventurer")


def test_no_crossing_is_said_plainly():
    found = search(machine(10**9))
    assert found.first_second is None
    assert found.last_first == 50_176
    sentence = found.sentence("vit", "adventurer", "training step")
    assert sentence.startswith(
        "no crossing: a training step of vit is faster than one of adventurer at every size up to 50,176 tokens"
    )
    assert "the most tokens allowed (50,176)" in sentence


def test_faster_from_the_start():
    found = search(machine(1))
    assert found.last_first is None
    assert len(found.trials) == 1
    assert "already at 16 tokens" in found.sentence("vit", "adventurer")


def test_a_size_that_would_not_end_in_time_is_not_begun():
    found = search(machine(10**9), time_limit_s=60)
    assert found.last_first == 64**2  # the next, 91 x 91, would take 69 s
    assert found.stopped_by == "the time limit (60 s)"


def test_a_size_that_does_not_fit_ends_the_search():
    def compare(side, seconds_left):
        if side > 30:
            raise CannotTry("out of memory")
        return machine(10**9)(side, seconds_left)

    found = search(compare)
    assert found.last_first == 529
    assert "1,024 tokens: out of memory" in found.sentence("vit", "adventurer")


def test_ctrl_c_keeps_what_was_found():
    def compare(side, seconds_left):
        if side > 10:
            raise KeyboardInterrupt
        return machine(10**9)(side, seconds_left)

    found = search(compare)
    assert found.interrupted
    assert len(found.trials) == 3


def test_both_models_on_this_machine():
    first, second = (
        StepConfig(model=name, patch_size=2, device="cpu", num_classes=10) for name in ("vit_test", "adventurer_test")
    )
    trial = compare_models(at_side(first, 4), at_side(second, 4), warm_up=1, repetitions=3, num_threads=1)
    assert (trial.tokens, trial.img_size) == (16, 8)
    assert trial.ratio_25 <= trial.ratio <= trial.ratio_75
    # Which is faster is the machine's affair; of three timed steps two took the median or longer.
    assert 0 < 2 * max(trial.first_s, trial.second_s) <= trial.spent_s
